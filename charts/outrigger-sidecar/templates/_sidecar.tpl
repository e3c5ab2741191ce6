{{/*
A pod spec with the sidecar in it: the one include most charts need.

    spec:
      {{- include "outrigger.pod" (list . "orders.pod") | nindent 6 }}

"orders.pod" is the name of a template of yours that writes the pod spec. The sidecar becomes the last init container,
so it starts after the others (a proxy, a migration) and stops before them, but after your containers.
*/}}
{{- define "outrigger.pod" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $spec := include $name $root | fromYaml -}}
{{- if not $spec.containers -}}
{{- fail (printf "outrigger.pod: the template %q writes no pod spec: %s" $name ($spec.Error | default "it has no containers")) -}}
{{- end -}}
{{- $values := include "outrigger.values" $root | fromYaml -}}
{{- $grace := int ($spec.terminationGracePeriodSeconds | default 30) -}}
{{- if le $grace (int $values.shutdownTimeoutSeconds) -}}
{{- fail (printf "terminationGracePeriodSeconds of the pod is %d: it must be longer than outrigger.shutdownTimeoutSeconds (%d) and the time your containers need to stop, together" $grace (int $values.shutdownTimeoutSeconds)) -}}
{{- end -}}
{{- $sidecar := include "outrigger.sidecar" $root | fromYamlArray -}}
{{- $_ := set $spec "initContainers" (concat ($spec.initContainers | default list) $sidecar) -}}
{{- with include "outrigger.volumes" $root | fromYamlArray -}}
{{- $_ := set $spec "volumes" (concat ($spec.volumes | default list) .) -}}
{{- $context := $spec.securityContext | default dict -}}
{{- /* Without a group of its own the platform chooses, this one included. */ -}}
{{- if and $values.securityContext.runAsGroup (not (hasKey $context "fsGroup")) -}}
{{- $_ := set $spec "securityContext" (merge (dict "fsGroup" (int64 $values.securityContext.runAsGroup)) $context) -}}
{{- end -}}
{{- end -}}
{{- if not (hasKey $spec "enableServiceLinks") -}}
{{- $_ := set $spec "enableServiceLinks" false -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end }}

{{/*
The sidecar alone, for a pod spec that is written out. It is an item of `initContainers`; give the pod
`enableServiceLinks: false`, a grace period above shutdownTimeoutSeconds, and "outrigger.volumes" if there are mounts.
*/}}
{{- define "outrigger.sidecar" -}}
{{- $values := include "outrigger.values" . | fromYaml -}}
{{- $part := dict "root" . "values" $values "prefix" "outrigger." -}}
{{- include "outrigger.required" $part -}}
- {{- include "outrigger.container" $part | nindent 2 }}
  restartPolicy: Always
  {{- include "outrigger.ports" $part | nindent 2 }}
  {{- /* No readiness: it would take the service out of rotation when the broker is away. */}}
  {{- include "outrigger.liveness" . | nindent 2 }}
{{- end }}

{{/* Items of `volumes`; nothing without mounts. */}}
{{- define "outrigger.volumes" -}}
{{- $values := include "outrigger.values" . | fromYaml -}}
{{- include "outrigger.volumesOf" (dict "values" $values "prefix" "outrigger.") | trim -}}
{{- end }}

{{- define "outrigger.values" -}}
{{- if not .Values.outrigger -}}
{{- fail "no values `outrigger`: give the dependency outrigger-sidecar `alias: outrigger` in Chart.yaml" -}}
{{- end -}}
{{- toYaml .Values.outrigger -}}
{{- end }}
