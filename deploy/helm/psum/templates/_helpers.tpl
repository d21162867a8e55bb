{{- define "psum.selector" -}}
app.kubernetes.io/name: {{ .Values.name }}
{{- end }}

{{- define "psum.labels" -}}
{{ include "psum.selector" . }}
app.kubernetes.io/component: aggregator
app.kubernetes.io/part-of: psum
{{- end }}

{{- define "psum.metadata" -}}
name: {{ .Values.name }}
namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "psum.relay.selector" -}}
app.kubernetes.io/name: {{ .Values.name }}-relay
{{- end }}

{{- define "psum.relay.labels" -}}
{{ include "psum.relay.selector" . }}
app.kubernetes.io/component: relay
app.kubernetes.io/part-of: psum
{{- end }}

{{- define "psum.relay.metadata" -}}
name: {{ .Values.name }}-relay
namespace: {{ .Release.Namespace }}
{{- end }}
