{{- /* The PodDisruptionBudget of a component: dict root, component, sink, name (empty = that of the component), values. */ -}}
{{- define "restante.pdb" -}}
{{- $p := .values.pdb -}}
{{- if $p.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ default (printf "%s-%s" (include "restante.fullname" .root) .component) .name }}
  labels:
    {{- include "restante.componentLabels" . | nindent 4 }}
spec:
  {{- if ne (toString $p.minAvailable) "" }}
  minAvailable: {{ $p.minAvailable }}
  {{- else }}
  maxUnavailable: {{ $p.maxUnavailable }}
  {{- end }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "restante.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* A consumer of Kafka: Deployment, autoscaler and PodDisruptionBudget. dict root, component, sink, name, at (its place in the values),
group, topics (the kinds of topics that it reads), values. */ -}}
{{- define "restante.consumer" -}}
{{- $a := .values.autoscaling -}}
{{- $most := include "restante.partitions" (dict "root" .root "kind" (first .topics)) | int -}}
{{- if ne $a.type "none" -}}
{{- if gt (int $a.maxReplicas) $most -}}
{{- fail (printf "%s.autoscaling.maxReplicas: %d is more than the %d partitions of kafka.%s: a partition has one owner, the others would idle" .at (int $a.maxReplicas) $most (first .topics)) -}}
{{- end -}}
{{- if gt (int $a.minReplicas) (int $a.maxReplicas) -}}
{{- fail (printf "%s.autoscaling.minReplicas: %d is more than maxReplicas (%d)" .at (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- end -}}
{{- else if gt (int .values.replicas) $most -}}
{{- fail (printf "%s.replicas: %d is more than the %d partitions of kafka.%s: a partition has one owner, the others would idle" .at (int .values.replicas) $most (first .topics)) -}}
{{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  labels:
    {{- include "restante.componentLabels" . | nindent 4 }}
spec:
  {{- if eq $a.type "none" }}
  replicas: {{ .values.replicas }}
  {{- end }}
  strategy:
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
  selector:
    matchLabels:
      {{- include "restante.selector" . | nindent 6 }}
  template:
    {{- include "restante.podTemplate" . | nindent 4 }}
{{- include "restante.pdb" . }}
{{- if eq $a.type "keda" }}
{{- include "restante.keda" . }}
{{- else if eq $a.type "hpa" }}
{{- include "restante.hpa" . }}
{{- end }}
{{- end -}}

{{- /* The partitions of a kind of topic, by Restante's default where the configuration says nothing: dict root, kind. */ -}}
{{- define "restante.partitions" -}}
{{- $n := dig "kafka" .kind "partitions" 12 .root.Values.config -}}
{{- if kindIs "string" $n -}}
{{- fail (printf "config.kafka.%s.partitions: %s must be a number here, since the replicas are held against it" .kind $n) -}}
{{- end -}}
{{- int $n -}}
{{- end -}}

{{- define "restante.group" -}}
{{- printf "%s.%s" (dig "kafka" "names" "groups" "restante" .root.Values.config) .tail -}}
{{- end -}}

{{- define "restante.topic" -}}
{{- printf "%s.%s" (dig "kafka" "names" "topics" "mqtt" .root.Values.config) .kind -}}
{{- end -}}
