{{- define "outrigger.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "outrigger.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "outrigger.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- /* Room for a suffix, and for the hash of a ReplicaSet. */ -}}
{{- printf "%s-%s" .Release.Name (include "outrigger.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "outrigger.selectorLabels" -}}
app.kubernetes.io/name: {{ include "outrigger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "outrigger.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "outrigger.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "outrigger.serviceAccountName" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "outrigger.fullname" . -}}
{{- else -}}
default
{{- end -}}
{{- end }}

{{/* The usual ports of what the sink publishes to, as JSON. */}}
{{- define "outrigger.sinkPorts" -}}
{{- get (dict
      "rabbitmq" (list 5671 5672)
      "nats" (list 4222)
      "http" (list 443 80)
      "kafka" (list 9092 9093)
      "eventbridge" (list 443 80)) (include "outrigger.sink" (dict "values" .Values)) | default list | toJson -}}
{{- end }}

{{/* What every pod of this chart has in common. */}}
{{- define "outrigger.podDefaults" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with include "outrigger.volumesOf" (dict "values" .Values "prefix" "") | trim }}
volumes:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}
