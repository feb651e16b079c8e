{{- define "switchyard.config" -}}
{{- $theirs := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration"
      "detectLocalMode" .Values.detectLocalMode "metricsBindAddress" (ternary "0.0.0.0:10249" "127.0.0.1:10249" .Values.monitoring.podMonitor) -}}
{{- with .Values.clusterCIDR }}{{ $_ := set $theirs "clusterCIDR" . }}{{ end -}}
{{- $ours := dict "apiVersion" "config.switchyard.io/v1alpha1" "kind" "SwitchyardConfiguration"
      "apiServers" .Values.apiServers -}}
{{- if .Values.takeOver }}{{ $_ := set $ours "takeOver" true }}{{ end -}}
{{ mustMergeOverwrite $theirs (deepCopy .Values.kubeProxyConfiguration) | toYaml }}
---
{{ mustMergeOverwrite $ours (deepCopy .Values.switchyardConfiguration) | toYaml }}
{{ end -}}

{{/* Its name changes with its content, so that a change rolls through the nodes. */}}
{{- define "switchyard.configName" -}}
switchyard-{{ include "switchyard.config" . | sha256sum | trunc 10 }}
{{- end -}}

{{- define "switchyard.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "switchyard.labels" -}}
app.kubernetes.io/name: switchyard
{{- end -}}
