{{- /* The ScaledObject of a consumer, and where Kafka wants a login or TLS its TriggerAuthentication: as restante.consumer. */ -}}
{{- define "restante.keda" -}}
{{- $root := .root -}}
{{- $a := .values.autoscaling -}}
{{- $k := $a.keda -}}
{{- $kafka := .root.Values.config.kafka -}}
{{- $tls := default dict $kafka.tls -}}
{{- $sasl := default dict $kafka.sasl -}}
{{- $mechanism := default "" $sasl.mechanism -}}
{{- $auth := $k.authenticationRef -}}
{{- if not $auth }}
{{- $spec := include "restante.kedaAuth" . | fromYaml }}
{{- if $spec }}
{{- $auth = .name }}
---
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata:
  name: {{ .name }}
  labels:
    {{- include "restante.componentLabels" . | nindent 4 }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{- end }}
{{- end }}
{{- $brokers := $kafka.brokers }}
{{- if kindIs "slice" $brokers }}{{ $brokers = join "," $brokers }}{{ end }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels:
    {{- include "restante.componentLabels" . | nindent 4 }}
  {{- with $k.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  scaleTargetRef:
    name: {{ .name }}
    envSourceContainerName: {{ .component }}
  minReplicaCount: {{ $a.minReplicas }}
  maxReplicaCount: {{ $a.maxReplicas }}
  pollingInterval: {{ int64 $k.pollingInterval }}
  cooldownPeriod: {{ int64 $k.cooldownPeriod }}
  {{- with $k.fallback }}
  fallback:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $a.behavior }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        {{- toYaml . | nindent 8 }}
  {{- end }}
  triggers:
    {{- $group := .group }}
    {{- range .topics }}
    - type: apache-kafka
      name: {{ . }}
      metadata:
        bootstrapServers: {{ $brokers | quote }}
        consumerGroup: {{ $group | quote }}
        topic: {{ include "restante.topic" (dict "root" $root "kind" .) | quote }}
        lagThreshold: {{ int64 $a.lagThreshold | quote }}
        activationLagThreshold: {{ int64 $k.activationLagThreshold | quote }}
        # A group that has never committed begins at the start of the log, and so does its lag.
        offsetResetPolicy: earliest
        # A partition whose commit stands still is a reason to scale, not one to look away.
        excludePersistentLag: "false"
        {{- if $tls.enabled }}
        tls: enable
        {{- end }}
        {{- with $mechanism }}
        sasl: {{ get (dict "plain" "plaintext" "scram-sha-256" "scram_sha256" "scram-sha-512" "scram_sha512" "aws-msk-iam" "aws_msk_iam") . }}
        {{- end }}
        {{- if eq $mechanism "aws-msk-iam" }}
        awsRegion: {{ required "config.kafka.sasl.region: KEDA must be told the region" $sasl.region | quote }}
        {{- end }}
        {{- with $k.metadata }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $auth }}
      authenticationRef:
        name: {{ . }}
      {{- end }}
    {{- end }}
    {{- if and $a.activeReplays $k.prometheusAddress }}
    - type: prometheus
      name: active
      metadata:
        serverAddress: {{ $k.prometheusAddress | quote }}
        query: {{ printf "sum(restante_replay_active{namespace=%q,pod=~%q})" .root.Release.Namespace (printf "%s-.*" .name) | quote }}
        threshold: {{ int64 $a.activeReplays | quote }}
    {{- end }}
{{- end -}}

{{- /* The spec of the TriggerAuthentication that KEDA needs to ask Kafka: the Secrets behind kafka.sasl.password_file and kafka.tls, or the
workload's own identity at AWS. Nothing where neither is needed. */ -}}
{{- define "restante.kedaAuth" -}}
{{- $k := .values.autoscaling.keda -}}
{{- $tls := default dict .root.Values.config.kafka.tls -}}
{{- $sasl := default dict .root.Values.config.kafka.sasl -}}
{{- $mechanism := default "" $sasl.mechanism -}}
{{- $refs := list -}}
{{- if eq $mechanism "aws-msk-iam" -}}
podIdentity:
  provider: aws
  identityOwner: workload
{{ else if $mechanism -}}
{{- if not $k.userSecret -}}
{{- fail (printf "%s.autoscaling.keda.userSecret: name the Secret key with the Kafka user, or an authenticationRef: KEDA takes the login from Secrets alone" .at) -}}
{{- end -}}
{{- $refs = append $refs (dict "parameter" "username" "name" $k.userSecret.name "key" $k.userSecret.key) -}}
{{- $refs = append $refs (include "restante.secretRef" (dict "root" .root "at" .at "parameter" "password" "file" $sasl.password_file) | fromJson) -}}
{{- end -}}
{{- if $tls.enabled -}}
{{- range $parameter, $file := dict "ca" $tls.ca_file "cert" $tls.cert_file "key" $tls.key_file -}}
{{- if $file -}}
{{- $refs = append $refs (include "restante.secretRef" (dict "root" $.root "at" $.at "parameter" $parameter "file" $file) | fromJson) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $refs -}}
secretTargetRef:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /* The Secret and key behind a file under /run/secrets: dict root, at, parameter, file. */ -}}
{{- define "restante.secretRef" -}}
{{- $file := default "" .file -}}
{{- $parts := regexFind "^/run/secrets/[^/]+/[^/]+$" $file | trimPrefix "/run/secrets/" | splitList "/" -}}
{{- if ne (len $parts) 2 -}}
{{- fail (printf "%s.autoscaling.keda.authenticationRef: is needed: the chart finds no Secret for Kafka's %s, only files /run/secrets/NAME/KEY are known to be of one" .at .parameter) -}}
{{- end -}}
{{- dict "parameter" .parameter "name" (get .root.Values.secrets (first $parts)).secretName "key" (last $parts) | toJson -}}
{{- end -}}

{{- /* The HorizontalPodAutoscaler of a consumer: as restante.consumer. */ -}}
{{- define "restante.hpa" -}}
{{- $a := .values.autoscaling }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  labels:
    {{- include "restante.componentLabels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ .name }}
  minReplicas: {{ $a.minReplicas }}
  maxReplicas: {{ $a.maxReplicas }}
  metrics:
    - type: External
      external:
        metric:
          name: {{ $a.hpa.metricName }}
          selector:
            matchLabels:
              group: {{ .group }}
              {{- with $a.hpa.matchLabels }}
              {{- toYaml . | nindent 14 }}
              {{- end }}
        target:
          type: AverageValue
          averageValue: {{ int64 $a.lagThreshold | quote }}
    {{- if $a.activeReplays }}
    - type: Pods
      pods:
        metric:
          name: {{ $a.hpa.activeMetricName }}
        target:
          type: AverageValue
          averageValue: {{ int64 $a.activeReplays | quote }}
    {{- end }}
  {{- with $a.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
