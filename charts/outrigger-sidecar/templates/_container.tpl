{{/*
The relay's container without probes, for the sidecar, the Deployment and the migration alike.
Takes a dict: root (the chart's context), values (image, settings, secrets, …), prefix (what the user calls them).
*/}}
{{- define "outrigger.container" -}}
{{- $values := .values -}}
name: outrigger
image: {{ include "outrigger.image" . | quote }}
imagePullPolicy: {{ $values.image.pullPolicy }}
env:
  {{- include "outrigger.env" . | nindent 2 }}
{{- with $values.mounts }}
volumeMounts:
  {{- range . }}
  - name: outrigger-{{ .name }}
    mountPath: {{ .path }}
    readOnly: true
  {{- end }}
{{- end }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
securityContext:
  {{- toYaml $values.securityContext | nindent 2 }}
{{- end }}

{{- define "outrigger.image" -}}
{{- $image := .values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "outrigger.env" -}}
{{- $values := .values -}}
{{- $prefix := .prefix -}}
{{- $settings := deepCopy ($values.settings | default dict) -}}
{{- $secrets := $values.secrets | default dict -}}
{{- if hasKey $settings "OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT" -}}
{{- fail (printf "%ssettings: set %sshutdownTimeoutSeconds instead of OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT, it is compared with the grace period" $prefix $prefix) -}}
{{- end -}}
{{- $listen := index $settings "OUTRIGGER_ADMIN_LISTEN" | default "" | toString -}}
{{- $port := printf ":%d" (int $values.adminPort) -}}
{{- if and $listen (not (hasSuffix $port $listen)) -}}
{{- fail (printf "%ssettings: OUTRIGGER_ADMIN_LISTEN must end in %s, which is %sadminPort: probes go there" $prefix $port $prefix) -}}
{{- end -}}
{{- if and (not $listen) (ne $port ":9647") -}}
{{- $_ := set $settings "OUTRIGGER_ADMIN_LISTEN" (printf "0.0.0.0%s" $port) -}}
{{- end -}}
{{- $_ := set $settings "OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT" (printf "%ds" (int $values.shutdownTimeoutSeconds)) -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- range $name, $value := $settings }}
{{- /* Null takes back what another file of values has set. */}}
{{- if not (kindIs "invalid" $value) }}
{{- if index $secrets $name }}
{{- fail (printf "%s is in both %ssettings and %ssecrets" $name $prefix $prefix) }}
{{- end }}
- name: {{ $name }}
  {{- /* Numbers arrive as floats; a large one would be written as 1e+06. */}}
  value: {{ (kindIs "float64" $value | ternary (printf "%.0f" $value) ($value | toString)) | quote }}
{{- end }}
{{- end }}
{{- range $name, $secret := $secrets }}
{{- if $secret }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret.name }}
      key: {{ $secret.key }}
{{- end }}
{{- end }}
{{- end }}

{{/* The volumes of `mounts`. Group-readable: see fsGroup. */}}
{{- define "outrigger.volumesOf" -}}
{{- range .values.mounts }}
- name: outrigger-{{ .name }}
  {{- if .secret }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
  {{- else if .configMap }}
  configMap:
    name: {{ .configMap }}
  {{- else }}
  {{- fail (printf "%smounts: %s has neither secret nor configMap" $.prefix .name) }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "outrigger.liveness" -}}
startupProbe:
  httpGet: { path: /livez, port: outrigger }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /livez, port: outrigger }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{- define "outrigger.ports" -}}
ports:
  - name: outrigger
    containerPort: {{ .values.adminPort }}
    protocol: TCP
{{- end }}

{{/* For `run`: without these the relay would only say so after it has started. */}}
{{- define "outrigger.required" -}}
{{- $settings := .values.settings | default dict -}}
{{- $secrets := .values.secrets | default dict -}}
{{- if not (index $settings "OUTRIGGER_EVENT_SOURCE") -}}
{{- fail (printf "%ssettings.OUTRIGGER_EVENT_SOURCE is required: a URI reference that identifies the service, such as /services/orders" .prefix) -}}
{{- end -}}
{{- $database := false -}}
{{- range $name := list "OUTRIGGER_DATABASE_URL" "DATABASE_URL" "PGPASSWORD" -}}
{{- if index $secrets $name }}{{ $database = true }}{{ end -}}
{{- end -}}
{{- range $name := list "OUTRIGGER_DATABASE_URL_FILE" "PGHOST" "PGPASSFILE" "OUTRIGGER_CONFIG" -}}
{{- if index $settings $name }}{{ $database = true }}{{ end -}}
{{- end -}}
{{- if not $database -}}
{{- fail (printf "no database: name the key of a Secret in %ssecrets.OUTRIGGER_DATABASE_URL" .prefix) -}}
{{- end -}}
{{- /* The sink's own variable first, then those of other tools. A file of settings may hold anything. */ -}}
{{- $sink := include "outrigger.sink" . -}}
{{- $urls := get (dict
      "rabbitmq" (list "OUTRIGGER_RABBITMQ_URL" "AMQP_URL")
      "nats" (list "OUTRIGGER_NATS_URL" "NATS_URL")
      "http" (list "OUTRIGGER_HTTP_URL")) $sink -}}
{{- if and $urls (not (index $settings "OUTRIGGER_CONFIG")) -}}
{{- $given := index $settings (printf "%s_FILE" (first $urls)) -}}
{{- range $name := $urls -}}
{{- if index $secrets $name }}{{ $given = true }}{{ end -}}
{{- end -}}
{{- if not $given -}}
{{- fail (printf "nowhere to publish with the sink %s: name the key of a Secret in %ssecrets.%s" $sink .prefix (first $urls)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $sink "kafka") (not (index $settings "OUTRIGGER_KAFKA_BROKERS")) (not (index $settings "OUTRIGGER_CONFIG")) -}}
{{- fail (printf "nowhere to publish with the sink kafka: set %ssettings.OUTRIGGER_KAFKA_BROKERS" .prefix) -}}
{{- end -}}
{{- end }}

{{- define "outrigger.sink" -}}
{{- index (.values.settings | default dict) "OUTRIGGER_SINK" | default "rabbitmq" -}}
{{- end }}
