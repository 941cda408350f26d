{{/* Mistakes that the schema cannot see; included once, by the operator's Deployment. */}}
{{- define "quire.validate" -}}
{{- $watched := .Values.watchNamespaces }}
{{- range .Values.deployments }}
{{- $namespace := default $.Release.Namespace .namespace }}
{{- if and $watched (not (has $namespace $watched)) }}
{{- fail (printf "deployments: %s lies in namespace %s, which the operator does not serve; add it to watchNamespaces, or empty that to serve all" .name $namespace) }}
{{- end }}
{{- end }}
{{- $alerts := list }}
{{- range (.Files.Get "files/rules.yaml" | fromYaml).groups }}
{{- range .rules }}{{ with .alert }}{{ $alerts = append $alerts . }}{{ end }}{{ end }}
{{- end }}
{{- range .Values.metrics.rules.disabled }}
{{- if not (has . $alerts) }}
{{- fail (printf "metrics.rules.disabled: no alert is called %s; RUNBOOK.md beside the chart has them all" .) }}
{{- end }}
{{- end }}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
{{- fail "serviceAccount.name: name the account to use, since serviceAccount.create is false; the namespace's default account must not get the operator's rights" }}
{{- end }}
{{- if and .Values.placement.nodeFeatureRule (not .Values.placement.nvlinkLabel) }}
{{- fail "placement.nodeFeatureRule: also set placement.nvlinkLabel=quire.dev/nvlink=true, or nothing reads the label that the rule makes" }}
{{- end }}
{{- end }}
