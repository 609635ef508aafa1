{{- /* What is said of a component's pods: pod, and what the component says differently. dict root, values. */ -}}
{{- define "restante.podValues" -}}
{{- mergeOverwrite (deepCopy .root.Values.pod) (deepCopy (default dict .values.pod)) | toJson -}}
{{- end -}}

{{- /* The grace period: dict pod, root, preStop. */ -}}
{{- define "restante.grace" -}}
{{- $need := add (int .preStop) (int .root.Values.drainSeconds) 10 -}}
{{- $asked := int .pod.terminationGracePeriodSeconds -}}
{{- if and $asked (lt $asked $need) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too short: the pause before the stop (%d), drainSeconds (%d) and 10 are %d" $asked (int .preStop) (int .root.Values.drainSeconds) $need) -}}
{{- end -}}
{{- default (max 45 $need) $asked -}}
{{- end -}}

{{- /* Seconds before SIGTERM, 0 where nothing is waited for: only ingest with a Service, and only where the kubelet can sleep. */ -}}
{{- define "restante.preStop" -}}
{{- if and (eq .component "ingest") (include "restante.sourcePorts" .root | fromJsonArray) (semverCompare ">=1.30.0-0" .root.Capabilities.KubeVersion.Version) -}}
{{- int .values.preStopSeconds -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- /* Environment that the chart gives: dict resources, ordinal (of ingest alone). */ -}}
{{- define "restante.env" -}}
{{- $limits := default dict (default dict .resources).limits -}}
{{- $requests := default dict (default dict .resources).requests -}}
{{- with $limits.memory }}
- name: GOMEMLIMIT
  value: {{ div (mul (include "restante.bytes" . | int64) 9) 10 | quote }}
{{- end }}
{{- with default $requests.cpu $limits.cpu }}
- name: GOMAXPROCS
  value: {{ include "restante.cpus" . | quote }}
{{- end }}
- name: RESTANTE_ORDINAL
  {{- if .ordinal }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
  {{- else }}
  value: "0"
  {{- end }}
{{- end -}}

{{- define "restante.mounts" -}}
- name: config
  mountPath: /etc/restante
  readOnly: true
{{- range $name, $_ := .Values.secrets }}
- name: secret-{{ $name }}
  mountPath: /run/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- end -}}

{{- /* dict root, config (the ConfigMap's name). */ -}}
{{- define "restante.volumes" -}}
- name: config
  configMap:
    name: {{ .config }}
{{- range $name, $s := .root.Values.secrets }}
- name: secret-{{ $name }}
  secret:
    secretName: {{ $s.secretName }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- /* The pod template of a process: dict root, component, sink, values, command, args. */ -}}
{{- define "restante.podTemplate" -}}
{{- $pod := include "restante.podValues" . | fromJson -}}
{{- $root := .root -}}
{{- $stateful := and (eq .component "ingest") (include "restante.ingestStateful" .root) -}}
{{- $preStop := include "restante.preStop" . | int -}}
metadata:
  annotations:
    restante/config-checksum: {{ include "restante.config" .root | sha256sum }}
    {{- with $pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "restante.podLabels" . | nindent 4 }}
    {{- with $pod.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  serviceAccountName: {{ include "restante.serviceAccountName" .root }}
  automountServiceAccountToken: {{ .root.Values.serviceAccount.automountToken }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "restante.grace" (dict "root" .root "pod" $pod "preStop" $preStop) }}
  securityContext:
    {{- toYaml $pod.securityContext | nindent 4 }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pod.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- range default (list (dict "maxSkew" 1 "topologyKey" "topology.kubernetes.io/zone" "whenUnsatisfiable" "ScheduleAnyway") (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway")) $pod.topologySpreadConstraints }}
    {{- $own := dict "labelSelector" (dict "matchLabels" (include "restante.selector" $ | fromYaml)) }}
    {{- toYaml (list (merge (deepCopy .) $own)) | nindent 4 }}
    {{- end }}
  {{- with $pod.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "restante.image" (dict "root" .root "image" .values.image) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [/app/{{ .component }}]
      args:
        - -config=/etc/restante/restante.yaml
        {{- with .sink }}
        - -sink={{ . }}
        {{- end }}
      env:
        {{- include "restante.env" (dict "resources" .values.resources "ordinal" $stateful) | trim | nindent 8 }}
        {{- with $pod.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $pod.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: admin
          containerPort: {{ .root.Values.adminPort }}
        {{- if eq .component "ingest" }}
        {{- range (include "restante.sourcePorts" .root | fromJsonArray) }}
        - name: {{ .name }}
          containerPort: {{ .port }}
        {{- end }}
        {{- end }}
      startupProbe:
        httpGet: {path: /livez, port: admin}
        {{- toYaml $pod.startupProbe | nindent 8 }}
      livenessProbe:
        httpGet: {path: /livez, port: admin}
        {{- toYaml $pod.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        {{- toYaml $pod.readinessProbe | nindent 8 }}
      {{- if $preStop }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $preStop }}
      {{- end }}
      securityContext:
        {{- toYaml $pod.containerSecurityContext | nindent 8 }}
      {{- with .values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        {{- include "restante.mounts" .root | nindent 8 }}
        {{- if and (eq .component "ingest") .root.Values.ingest.spool.enabled }}
        - name: spool
          mountPath: /var/lib/restante
        {{- end }}
        {{- with $pod.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $pod.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "restante.volumes" (dict "root" .root "config" (include "restante.fullname" .root)) | nindent 4 }}
    {{- with $pod.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
