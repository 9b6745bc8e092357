{{/* Each of these gets (dict "root" $ "model" an entry of modelSpec). */}}

{{/* The name of the entry's Deployment and Service. */}}
{{- define "eft.name" -}}
{{- $name := printf "%s-%s" .root.Release.Name .model.name -}}
{{- if gt (len $name) 63 -}}
{{- fail (printf "%q has %d characters, and the name of a Service up to 63: choose a shorter release or modelSpec.name" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "eft.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
model: {{ .model.name }}
{{- end -}}

{{- define "eft.labels" -}}
{{ include "eft.selector" . }}
{{ include "eft.common" .root }}
{{- with .model.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels of every object, without the two that selectors have. */}}
{{- define "eft.common" -}}
app.kubernetes.io/component: serving-engine
app.kubernetes.io/part-of: {{ .Chart.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.servingEngineSpec.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "eft.serviceAccountName" -}}
{{- $account := .root.Values.servingEngineSpec.serviceAccount -}}
{{- if .model.serviceAccountName -}}
{{- .model.serviceAccountName -}}
{{- else if $account.create -}}
{{- default (printf "%s-eft" .root.Release.Name) $account.name -}}
{{- else -}}
{{- default "default" $account.name -}}
{{- end -}}
{{- end -}}

{{/* The family's name, which is the label model_name of vLLM's metrics. */}}
{{- define "eft.modelName" -}}
{{- if .model.modelName -}}
{{- .model.modelName -}}
{{- else if .model.familyFile -}}
{{- $family := fromYaml .model.familyFile -}}
{{- if hasKey $family "Error" -}}
{{- fail (printf "modelSpec %q: familyFile is not YAML: %s" .model.name $family.Error) -}}
{{- end -}}
{{- required (printf "modelSpec %q: familyFile has no name" .model.name) $family.name -}}
{{- else if contains "/" .model.family -}}
{{- fail (printf "modelSpec %q: set modelName to the name in %s, which the chart cannot read" .model.name .model.family) -}}
{{- else -}}
{{- .model.family -}}
{{- end -}}
{{- end -}}

{{/* What picks the entry's series. Prometheus's operator adds namespace and service; vLLM's own are model_name and engine. */}}
{{- define "eft.matchers" -}}
{model_name={{ include "eft.modelName" . | quote }},namespace={{ .root.Release.Namespace | quote }}
{{- if .root.Values.servingEngineSpec.serviceMonitor.enabled }},service={{ include "eft.name" . | quote }}{{ end }}}
{{- end -}}

{{/* The Secret of API keys, and its items: `name`, `keys` and `metrics`. */}}
{{- define "eft.keys" -}}
{{- $given := .root.Values.servingEngineSpec.vllmApiKey -}}
{{- if kindIs "map" $given -}}
{{- dict "name" $given.secretName "keys" $given.secretKey "metrics" (default "" $given.metricsKey) | toJson -}}
{{- else if $given -}}
{{- dict "name" (printf "%s-api-keys" .root.Release.Name) "keys" "api-keys" "metrics" "metrics" | toJson -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- define "eft.image" -}}
{{- $spec := .root.Values.servingEngineSpec -}}
{{- default $spec.repository .model.repository }}:{{ default $spec.tag .model.tag -}}
{{- end -}}

{{- define "eft.supervise" -}}
{{- if ternary .model.supervise .root.Values.servingEngineSpec.supervise (hasKey .model "supervise") }}true{{ end -}}
{{- end -}}

{{/* An engine that is restarted inside the pod may take as long as a start. */}}
{{- define "eft.liveness" -}}
{{- $spec := .root.Values.servingEngineSpec -}}
{{- $probe := deepCopy $spec.livenessProbe -}}
{{- if include "eft.supervise" . -}}
{{- $start := mul (int64 $spec.startupProbe.periodSeconds) (int64 $spec.startupProbe.failureThreshold) -}}
{{- $_ := set $probe "failureThreshold" (max (int64 $probe.failureThreshold) (div $start (int64 $probe.periodSeconds))) -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{/* The arguments of `eft`. */}}
{{- define "eft.args" -}}
{{- $spec := .root.Values.servingEngineSpec -}}
{{- $args := list "serve" (ternary "/etc/eft/family.yaml" .model.family (hasKey .model "familyFile")) "--host" "0.0.0.0" "--port" (toString (int64 $spec.containerPort)) -}}
{{- if (include "eft.keys" . | fromJson).name -}}
{{- $args = concat $args (list "--api-key-file" "/run/eft/keys/api-keys") -}}
{{- end -}}
{{- $args = concat $args (list "--set" (printf "server.drain_s=%d" (int64 $spec.drainSeconds))) -}}
{{- range .model.set -}}
{{- $args = concat $args (list "--set" .) -}}
{{- end -}}
{{- with .model.revision -}}
{{- $args = concat $args (list "--revision" .) -}}
{{- end -}}
{{- if .model.offline -}}
{{- $args = append $args "--offline" -}}
{{- end -}}
{{- if include "eft.supervise" . -}}
{{- $args = append $args "--supervise" -}}
{{- end -}}
{{- $vllm := list -}}
{{- with .model.vllmConfig -}}
{{- range $key, $option := dict "maxModelLen" "--max-model-len" "maxNumSeqs" "--max-num-seqs" "tensorParallelSize" "--tensor-parallel-size" "dataParallelSize" "--data-parallel-size" -}}
{{- if hasKey $.model.vllmConfig $key -}}
{{- $vllm = concat $vllm (list $option (toString (int64 (get $.model.vllmConfig $key)))) -}}
{{- end -}}
{{- end -}}
{{- range $key, $option := dict "dtype" "--dtype" "gpuMemoryUtilization" "--gpu-memory-utilization" -}}
{{- if hasKey $.model.vllmConfig $key -}}
{{- $vllm = concat $vllm (list $option (toString (get $.model.vllmConfig $key))) -}}
{{- end -}}
{{- end -}}
{{- range $key, $option := dict "enablePrefixCaching" "enable-prefix-caching" "enableChunkedPrefill" "enable-chunked-prefill" -}}
{{- if hasKey $.model.vllmConfig $key -}}
{{- $vllm = append $vllm (printf "--%s%s" (ternary "" "no-" (get $.model.vllmConfig $key)) $option) -}}
{{- end -}}
{{- end -}}
{{- $vllm = concat $vllm (default list .extraArgs) -}}
{{- end -}}
{{- if $vllm -}}
{{- $args = concat $args (list "--") $vllm -}}
{{- end -}}
{{- toYaml $args -}}
{{- end -}}

{{- define "eft.resources" -}}
{{- if .resources -}}
{{- toYaml .resources -}}
{{- else -}}
{{- $requests := dict -}}
{{- $limits := dict -}}
{{- with .requestCPU }}{{ $_ := set $requests "cpu" (toString .) }}{{ end -}}
{{- with .requestMemory }}{{ $_ := set $requests "memory" . }}{{ end -}}
{{- with .limitCPU }}{{ $_ := set $limits "cpu" (toString .) }}{{ end -}}
{{- with .limitMemory }}{{ $_ := set $limits "memory" . }}{{ end -}}
{{- if .requestGPU -}}
{{- $type := default "nvidia.com/gpu" .requestGPUType -}}
{{- $_ := set $requests $type (toString (int64 .requestGPU)) -}}
{{- $_ := set $limits $type (toString (int64 .requestGPU)) -}}
{{- end -}}
{{- toYaml (dict "requests" $requests "limits" $limits) -}}
{{- end -}}
{{- end -}}

{{/* The name of the entry's claim for the hub's cache; empty without one. */}}
{{- define "eft.claim" -}}
{{- if .model.pvcExistingClaimName -}}
{{- .model.pvcExistingClaimName -}}
{{- else if .model.pvcStorage -}}
{{- printf "%s-cache" (include "eft.name" .) -}}
{{- end -}}
{{- end -}}

{{/* What a schema cannot say: names that are taken twice, and two things that exclude each other. */}}
{{- define "eft.validate" -}}
{{- $names := list -}}
{{- range .Values.servingEngineSpec.modelSpec -}}
{{- if has .name $names -}}
{{- fail (printf "modelSpec: two entries are named %q" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and (dig "keda" "enabled" false .) (dig "hpa" "enabled" false .) -}}
{{- fail (printf "modelSpec %q: keda and hpa would both set the number of replicas; enable one of them" .name) -}}
{{- end -}}
{{- end -}}
{{- $keys := include "eft.keys" (dict "root" . "model" dict) | fromJson -}}
{{- if and .Values.servingEngineSpec.serviceMonitor.enabled $keys.name (not $keys.metrics) -}}
{{- fail "serviceMonitor with API keys: set vllmApiKey.metricsKey to the item of the Secret that holds one key alone" -}}
{{- end -}}
{{- end -}}
