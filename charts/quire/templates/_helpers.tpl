{{/* Name of the chart, as the label app.kubernetes.io/name. */}}
{{- define "quire.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of every object: the release, unless it already says what it is. */}}
{{- define "quire.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 45 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 45 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "quire.operatorName" -}}
{{ include "quire.fullname" . }}-operator
{{- end }}

{{- define "quire.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "quire.operatorName" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "quire.selectorLabels" -}}
app.kubernetes.io/name: {{ include "quire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "quire.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "quire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: quire
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "quire.operatorLabels" -}}
{{ include "quire.labels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Reference of an image: `include "quire.image" (list $ .Values.engine.image)`. A digest wins over a tag. */}}
{{- define "quire.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- $registry := default $image.registry $root.Values.global.imageRegistry }}
{{- $path := $image.repository }}
{{- if $registry }}{{ $path = printf "%s/%s" $registry $image.repository }}{{ end }}
{{- if $image.digest }}
{{- printf "%s@%s" $path $image.digest }}
{{- else }}
{{- printf "%s:%s" $path (default $root.Chart.AppVersion $image.tag) }}
{{- end }}
{{- end }}

{{/* Whether PodMonitors are wanted and known: "true" or nothing. */}}
{{- define "quire.podMonitors" -}}
{{- if and .Values.metrics.podMonitor.enabled (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1/PodMonitor") }}true{{ end }}
{{- end }}

{{- define "quire.metricsPort" -}}8080{{- end }}
{{- define "quire.healthPort" -}}8081{{- end }}

{{/* Command line of the operator. */}}
{{- define "quire.operatorArgs" -}}
- --engine-image={{ include "quire.image" (list . .Values.engine.image) }}
- --router-image={{ include "quire.image" (list . .Values.router.image) }}
- --image-pull-policy={{ .Values.engine.image.pullPolicy }}
{{- with .Values.global.imagePullSecrets }}
{{- $names := list }}
{{- range . }}{{ $names = append $names .name }}{{ end }}
- --image-pull-secrets={{ join "," $names }}
{{- end }}
{{- with .Values.watchNamespaces }}
- --watch-namespaces={{ join "," . }}
{{- end }}
{{- if not .Values.rbac.nodes }}
- --no-watch-nodes
{{- end }}
- --lease-name={{ include "quire.operatorName" . }}
- --cluster-domain={{ .Values.clusterDomain }}
{{- with .Values.placement.nodes }}
- --node-selector={{ . }}
{{- end }}
{{- with .Values.placement.nvlinkLabel }}
- --nvlink-label={{ . }}
{{- end }}
{{- with .Values.placement.tolerations }}
- {{ printf "--default-tolerations=%s" (toJson .) | toJson }}
{{- end }}
{{- if not .Values.networkPolicy.enabled }}
- --no-network-policies
{{- end }}
{{- with .Values.networkPolicy.metricsNamespaces }}
- --metrics-namespaces={{ join "," . }}
{{- end }}
{{- if not .Values.metrics.podMonitor.enabled }}
- --no-pod-monitors
{{- else if .Values.metrics.podMonitor.labels }}
{{- $labels := list }}
{{- range $key, $value := .Values.metrics.podMonitor.labels }}{{ $labels = append $labels (printf "%s=%s" $key $value) }}{{ end }}
- --pod-monitor-labels={{ join "," $labels }}
{{- end }}
{{- with .Values.metrics.prometheusAddress }}
- --prometheus-address={{ . }}
{{- end }}
- --metrics-address=:{{ include "quire.metricsPort" . }}
- --health-address=:{{ include "quire.healthPort" . }}
- --log-level={{ .Values.operator.logLevel }}
- --log-format={{ .Values.operator.logFormat }}
{{- with .Values.operator.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
