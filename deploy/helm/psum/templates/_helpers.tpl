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
