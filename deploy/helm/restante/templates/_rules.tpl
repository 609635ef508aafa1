{{- /* A text of rules/alerts.yaml with its ${…} filled in: dict text, fill. */ -}}
{{- define "restante.fill" -}}
{{- $text := .text -}}
{{- range $key, $value := .fill }}{{- $text = replace (printf "${%s}" $key) (toString $value) $text -}}{{- end -}}
{{- with regexFind "\\$\\{[^}]*\\}" $text }}{{- fail (printf "rules/alerts.yaml: %s is not known" .) -}}{{- end -}}
{{- $text -}}
{{- end -}}

{{- /* One rule: dict root, rule, fill, labels. */ -}}
{{- define "restante.rule" -}}
{{- $r := .rule -}}
{{- $set := .root.Values.monitoring.rules -}}
{{- $expr := $r.expr -}}
{{- if and $r.native (eq $set.histograms "native") }}{{- $expr = $r.native -}}{{- end -}}
alert: {{ $r.alert }}
{{ dict "expr" (include "restante.fill" (dict "text" ($expr | trim) "fill" .fill)) | toYaml }}
{{- with default $r.for (get $set.for $r.alert) }}
for: {{ . }}
{{- end }}
labels:
  {{- toYaml (merge (dict "severity" $r.severity) .labels $set.extraLabels) | nindent 2 }}
annotations:
  summary: {{ include "restante.fill" (dict "text" $r.summary "fill" .fill) | toJson }}
  description: {{ include "restante.fill" (dict "text" $r.description "fill" .fill) | toJson }}
  runbook_url: {{ printf "%s/%s.md" (trimSuffix "/" $set.runbookURL) $r.alert }}
  dashboard: {{ if $set.grafanaURL }}{{ printf "%s/d/%s" (trimSuffix "/" $set.grafanaURL) $r.dashboard }}{{ else }}{{ $r.dashboard }}{{ end }}
{{- end -}}

{{- /* The groups of rules, as a file of Prometheus has them. */ -}}
{{- define "restante.rules" -}}
{{- $root := . -}}
{{- $set := .Values.monitoring.rules -}}
{{- $names := dig "kafka" "names" dict .Values.config -}}
{{- $groups := default "restante" $names.groups -}}
{{- $selector := "" -}}
{{- with $set.selector }}{{- $selector = printf "%s," (trimSuffix "," .) -}}{{- end -}}
{{- $common := merge (dict "selector" $selector "replayer" (printf "%s.replayer" $groups)) $set.thresholds -}}
groups:
{{- range (.Files.Get "rules/alerts.yaml" | fromYaml).groups }}
  - name: {{ .name }}
    {{- with $set.interval }}
    interval: {{ . }}
    {{- end }}
    rules:
    {{- range $rule := .rules }}
    {{- $off := has .alert $set.disabled -}}
    {{- if .component }}{{- if not (get $root.Values .component).enabled }}{{- $off = true -}}{{- end -}}{{- end -}}
    {{- if $off -}}
    {{- else if eq (default "" .each) "sink" }}
    {{- range $sink := include "restante.sinks" $root | fromJsonArray }}
    {{- $own := dict "sink" $sink "group" (printf "%s.writer.%s" $groups $sink) }}
      - {{ include "restante.rule" (dict "root" $root "rule" $rule "labels" $own "fill" (merge (deepCopy $own) (default dict (get $set.sinks $sink)) $common)) | nindent 8 | trim }}
    {{- end }}
    {{- else }}
      - {{ include "restante.rule" (dict "root" $root "rule" $rule "labels" dict "fill" $common) | nindent 8 | trim }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end -}}
