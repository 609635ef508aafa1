{{- /* The configuration of all processes: the values' own, and what the chart knows better. */ -}}
{{- define "restante.config" -}}
{{- $c := deepCopy .Values.config -}}
{{- $_ := set $c "shutdown" (dict "drain" (printf "%ds" (int .Values.drainSeconds))) -}}
{{- $admin := default dict $c.admin -}}
{{- $_ := set $admin "listen" (printf ":%d" (int .Values.adminPort)) -}}
{{- $_ := set $c "admin" $admin -}}
{{- if .Values.ingest.spool.enabled -}}
{{- $ingest := default dict $c.ingest -}}
{{- $spool := default dict $ingest.spool -}}
{{- $_ := set $spool "path" "/var/lib/restante/spool" -}}
{{- $_ := set $ingest "spool" $spool -}}
{{- $_ := set $c "ingest" $ingest -}}
{{- end -}}
{{- range $name, $s := $c.sources -}}
{{- if eq $s.type "mqtt" -}}
{{- $_ := set $s "ordinal" "${RESTANTE_ORDINAL}" -}}
{{- end -}}
{{- end -}}
{{- toYaml $c -}}
{{- end -}}

{{- /* What the schema cannot see. It prints nothing. */ -}}
{{- define "restante.validate" -}}
{{- $v := .Values -}}
{{- $sinks := include "restante.sinks" . | fromJsonArray -}}
{{- range $sinks -}}
{{- if not (hasKey (default dict $v.config.sinks) .) -}}
{{- fail (printf "config.rules: there is no sink %q in config.sinks" .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $v.writers -}}
{{- if not (has $name $sinks) -}}
{{- fail (printf "writers.%s: no rule names a sink %q: those named are %s" $name $name (join ", " $sinks)) -}}
{{- end -}}
{{- end -}}
{{- range (regexFindAll "/run/secrets/[^/\"]+/" (toJson $v.config) -1) -}}
{{- $name := . | trimPrefix "/run/secrets/" | trimSuffix "/" -}}
{{- if not (hasKey $v.secrets $name) -}}
{{- fail (printf "config names a file in /run/secrets/%s/ and secrets has no %q: add secrets.%s.secretName" $name $name $name) -}}
{{- end -}}
{{- end -}}
{{- $session := dig "kafka" "session_timeout" "30s" $v.config | toString -}}
{{- if regexMatch "^[0-9]+[sm]$" $session -}}
{{- $seconds := mul (regexFind "^[0-9]+" $session | int) (ternary 60 1 (hasSuffix "m" $session)) -}}
{{- if ge (add (int $v.drainSeconds) 5) $seconds -}}
{{- fail (printf "drainSeconds: %d and 5 s more must be less than config.kafka.session_timeout (%s): a process that ends would lose its partitions before it has finished" (int $v.drainSeconds) $session) -}}
{{- end -}}
{{- end -}}
{{- if $v.ingest.enabled -}}
{{- include "restante.validateSources" . -}}
{{- end -}}
{{- if $v.ingest.spool.enabled -}}
{{- $size := dig "ingest" "spool" "size" "1GiB" $v.config | toString -}}
{{- $want := include "restante.bytes" (nospace $size | trimSuffix "B") | int64 -}}
{{- $have := include "restante.bytes" $v.ingest.spool.volumeSize | int64 -}}
{{- if le $have $want -}}
{{- fail (printf "ingest.spool.volumeSize: %s is not more than config.ingest.spool.size (%s)" $v.ingest.spool.volumeSize $size) -}}
{{- end -}}
{{- end -}}
{{- if and $v.replayer.enabled (not (dig "delivery" "mqtt" "url" "" $v.config)) -}}
{{- fail "config.delivery.mqtt.url: is missing: the broker that stored messages are published to" -}}
{{- end -}}
{{- end -}}

{{- define "restante.validateSources" -}}
{{- $v := .Values -}}
{{- $ports := dict (int $v.adminPort | toString) "adminPort" -}}
{{- range $name, $s := $v.config.sources -}}
{{- if eq $s.type "mqtt" -}}
{{- $connections := int (default (ternary 4 1 (eq (default "plain" $s.decode) "plain")) $s.connections) -}}
{{- if and (gt (int $v.ingest.replicas) 1) (eq $connections 1) -}}
{{- fail (printf "ingest.replicas: with %d, each would take every event of sources.%s, which has one connection: use 1, or several connections where the order of a client's events does not matter" (int $v.ingest.replicas) $name) -}}
{{- end -}}
{{- else -}}
{{- $host := regexReplaceAll ":[0-9]+$" (default "127.0.0.1:0" $s.listen) "" -}}
{{- if or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "[::1]") -}}
{{- fail (printf "config.sources.%s.listen: %s is not reached from outside the pod: write \":PORT\"" $name (default "127.0.0.1, the default," $s.listen)) -}}
{{- end -}}
{{- $port := include "restante.port" $s.listen -}}
{{- if hasKey $ports $port -}}
{{- fail (printf "config.sources.%s.listen: port %s is taken by %s" $name $port (get $ports $port)) -}}
{{- end -}}
{{- $_ := set $ports $port (printf "sources.%s" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The port of an address host:port. */ -}}
{{- define "restante.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end -}}

{{- /* The port of host or host:port, with a default: list address, default. */ -}}
{{- define "restante.portOr" -}}
{{- default (last .) (regexFind ":[0-9]+$" (trim (first .)) | trimPrefix ":") -}}
{{- end -}}

{{- /* The port of a URL, by its scheme where it has none. */ -}}
{{- define "restante.urlPort" -}}
{{- $scheme := splitList "://" . | first -}}
{{- $known := dict "mqtt" 1883 "tcp" 1883 "mqtts" 8883 "ssl" 8883 "http" 80 "https" 443 -}}
{{- $host := regexFind "://[^/]*" . -}}
{{- default (get $known $scheme) (regexFind ":[0-9]+$" $host | trimPrefix ":") -}}
{{- end -}}

{{- /* The ports that ingest listens on, as a JSON list of {name, port}. */ -}}
{{- define "restante.sourcePorts" -}}
{{- $out := list -}}
{{- range $name, $s := .Values.config.sources -}}
{{- if ne $s.type "mqtt" -}}
{{- $out = append $out (dict "name" (printf "%s-%s" (trunc 9 $s.type) (sha256sum $name | trunc 5)) "source" $name "port" (include "restante.port" (default ":0" $s.listen) | int) "h2c" (and (eq $s.type "exhook") (not (dig "tls" "enabled" false $s)))) -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{- /* Whether ingest is a StatefulSet: when the broker knows it by an ordinal, or it has a disk. "true" or nothing. */ -}}
{{- define "restante.ingestStateful" -}}
{{- $yes := .Values.ingest.spool.enabled -}}
{{- range .Values.config.sources -}}
{{- if eq .type "mqtt" -}}{{- $yes = true -}}{{- end -}}
{{- end -}}
{{- if $yes -}}true{{- end -}}
{{- end -}}

{{- /* A Kubernetes quantity of memory in bytes. */ -}}
{{- define "restante.bytes" -}}
{{- $q := toString . -}}
{{- $n := regexFind "^[0-9]+" $q | int64 -}}
{{- $unit := regexReplaceAll "^[0-9]+" $q "" -}}
{{- $factor := get (dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) $unit -}}
{{- if not $factor -}}
{{- fail (printf "%q is no whole number of bytes: write 512Mi or 2Gi" $q) -}}
{{- end -}}
{{- mul $n (int64 $factor) -}}
{{- end -}}

{{- /* The whole CPUs of a quantity, rounded up, at least 1. */ -}}
{{- define "restante.cpus" -}}
{{- $q := toString . -}}
{{- if hasSuffix "m" $q -}}
{{- max 1 (ceil (divf (trimSuffix "m" $q) 1000)) -}}
{{- else -}}
{{- max 1 (ceil $q) -}}
{{- end -}}
{{- end -}}
