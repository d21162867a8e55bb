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

{{- /* The ports of a service for the further processes of an aggregator. */ -}}
{{- define "psum.process-ports" -}}
{{- range $i := untilStep 1 (int .Values.processes) 1 }}
- name: grpc-{{ $i }}
  port: {{ add 50051 (mul 2 $i) }}
  targetPort: grpc-{{ $i }}
- name: data-{{ $i }}
  port: {{ add 50052 (mul 2 $i) }}
  targetPort: data-{{ $i }}
{{- end }}
{{- end }}
