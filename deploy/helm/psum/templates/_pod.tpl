{{- /* The specification of a pod with an aggregator: one of the fleet, or a relay. It takes root, which has the chart's values,
and of, which has the values that differ between them. */ -}}
{{- define "psum.pod" -}}
serviceAccountName: {{ .root.Values.name }}
automountServiceAccountToken: false
enableServiceLinks: false
# More than PSUM_GRACE and ten seconds to close.
terminationGracePeriodSeconds: {{ add (trimSuffix "s" .root.Values.grace) 30 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
containers:
  - name: aggregator
    image: "{{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}"
    env:
      - name: PSUM_LISTEN
        value: 0.0.0.0:50051
      - name: PSUM_DATA_PORT
        value: "50052"
      - name: PSUM_HTTP
        value: 0.0.0.0:8080
      - name: PSUM_MEMORY_BUDGET
        value: {{ .of.memoryBudget | quote }}
      - name: PSUM_THREADS
        value: {{ .of.threads | quote }}
      {{- if gt (int .of.processes) 1 }}
      - name: PSUM_PROCESSES
        value: {{ .of.processes | quote }}
      {{- end }}
      - name: PSUM_GRACE
        value: {{ .root.Values.grace | quote }}
      - name: PSUM_WORKER_TIMEOUT
        value: {{ .root.Values.workerTimeout | quote }}
      - name: PSUM_CLOSED_TIMEOUT
        value: {{ .root.Values.closedTimeout | quote }}
      - name: PSUM_LOG_FORMAT
        value: json
      {{- if .root.Values.tls.enabled }}
      - name: PSUM_AGGREGATOR_TLS_CERT
        value: /etc/psum/tls/tls.crt
      - name: PSUM_AGGREGATOR_TLS_KEY
        value: /etc/psum/tls/tls.key
      {{- end }}
      {{- if .root.Values.token.enabled }}
      - name: PSUM_AGGREGATOR_TOKEN_FILE
        value: /etc/psum/tokens/tokens
      {{- end }}
      {{- if .root.Values.plainText }}
      - name: PSUM_AGGREGATOR_INSECURE
        value: "1"
      {{- end }}
      {{- if .root.Values.sharedMemory }}
      - name: PSUM_SHM_DIRECTORY
        value: /dev/shm
      {{- end }}
      {{- if .of.forwards }}
      {{- if .root.Values.tls.enabled }}
      - name: PSUM_RELAY_TLS_CA
        value: /etc/psum/tls/ca.crt
      {{- end }}
      - name: PSUM_CONNECT_TIMEOUT
        value: 10m
      - name: PSUM_RECONNECT_TIMEOUT
        value: 10m
      {{- else }}
      - name: PSUM_RELAYING
        value: "0"
      {{- end }}
      {{- range $name, $value := .of.settings }}
      - name: {{ $name }}
        value: {{ $value | quote }}
      {{- end }}
    ports:
      - name: grpc
        containerPort: 50051
      - name: data
        containerPort: 50052
      {{- range $i := untilStep 1 (int .of.processes) 1 }}
      - name: grpc-{{ $i }}
        containerPort: {{ add 50051 (mul 2 $i) }}
      - name: data-{{ $i }}
        containerPort: {{ add 50052 (mul 2 $i) }}
      {{- end }}
      - name: http
        containerPort: 8080
    startupProbe:
      httpGet:
        path: /healthz
        port: http
      periodSeconds: 1
      failureThreshold: 60
    livenessProbe:
      httpGet:
        path: /healthz
        port: http
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    readinessProbe:
      httpGet:
        path: /readyz
        port: http
      periodSeconds: 2
      timeoutSeconds: 2
    resources:
      {{- toYaml .of.resources | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities:
        drop: [ALL]
    {{- if or .root.Values.tls.enabled .root.Values.token.enabled .root.Values.sharedMemory }}
    volumeMounts:
      {{- if .root.Values.tls.enabled }}
      - name: tls
        mountPath: /etc/psum/tls
        readOnly: true
      {{- end }}
      {{- if .root.Values.token.enabled }}
      - name: tokens
        mountPath: /etc/psum/tokens
        readOnly: true
      {{- end }}
      {{- if .root.Values.sharedMemory }}
      - name: shared-memory
        mountPath: /dev/shm
      {{- end }}
    {{- end }}
{{- if or .root.Values.tls.enabled .root.Values.token.enabled .root.Values.sharedMemory }}
volumes:
  {{- if .root.Values.tls.enabled }}
  - name: tls
    secret:
      secretName: {{ .of.tlsSecret }}
      defaultMode: 0440
  {{- end }}
  {{- if .root.Values.token.enabled }}
  - name: tokens
    secret:
      secretName: {{ .root.Values.token.secretName }}
      defaultMode: 0440
  {{- end }}
  {{- if .root.Values.sharedMemory }}
  - name: shared-memory
    hostPath:
      path: /dev/shm
      type: Directory
  {{- end }}
{{- end }}
{{- end }}
