{{- /* Names and labels. */ -}}

{{- define "restante.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 34 | trimSuffix "-" -}}
{{- end -}}

{{- /* At most 34 characters, so that a sink's name and a suffix find room in the 63 of a label. */ -}}
{{- define "restante.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 34 | trimSuffix "-" -}}
{{- else if contains (include "restante.name" .) .Release.Name -}}
{{- .Release.Name | trunc 34 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "restante.name" .) | trunc 34 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "restante.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "restante.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: restante
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* What selects the pods of a component: dict root, component (ingest, writer, replayer, …), sink (of a writer). */ -}}
{{- define "restante.selector" -}}
app.kubernetes.io/name: {{ include "restante.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- with .sink }}
restante/sink: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* All labels of a component's objects. */ -}}
{{- define "restante.componentLabels" -}}
{{ include "restante.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- with .sink }}
restante/sink: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* Labels of pods: without the chart's version, which is no reason to start them anew. */ -}}
{{- define "restante.podLabels" -}}
{{ include "restante.selector" . }}
app.kubernetes.io/part-of: restante
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "restante.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "restante.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* The image, with a tag or digest of the component's own where it has one: dict root, image. */ -}}
{{- define "restante.image" -}}
{{- $i := .root.Values.image -}}
{{- $own := default dict .image -}}
{{- $name := $i.repository -}}
{{- with $i.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if $own.digest -}}
{{- printf "%s@%s" $name $own.digest -}}
{{- else if $own.tag -}}
{{- printf "%s:%s" $name $own.tag -}}
{{- else if $i.digest -}}
{{- printf "%s@%s" $name $i.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $i.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The name of a sink in names of objects; one that is changed for it gets a hash, so that no two fall together. */ -}}
{{- define "restante.sinkName" -}}
{{- $plain := . | lower | replace "_" "-" | trunc 14 | trimSuffix "-" -}}
{{- if eq $plain . -}}
{{- $plain -}}
{{- else -}}
{{- printf "%s-%s" $plain (sha256sum . | trunc 5) -}}
{{- end -}}
{{- end -}}

{{- /* The sinks that rules name, sorted, as a JSON list. */ -}}
{{- define "restante.sinks" -}}
{{- $names := list -}}
{{- range .Values.config.rules }}{{- $names = append $names .sink -}}{{- end -}}
{{- $names | uniq | sortAlpha | toJson -}}
{{- end -}}
