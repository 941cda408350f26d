{{/* What the operator may do in the namespaces that it serves; with ClusterRoles, in all of them. */}}
{{- define "quire.rules" -}}
# Its own resource: read it, and report.
- apiGroups: [quire.dev]
  resources: [llmdeployments]
  verbs: [get, list, watch]
- apiGroups: [quire.dev]
  resources: [llmdeployments/status]
  verbs: [patch]
# Where the admission plugin OwnerReferencesPermissionEnforcement is on, owning children takes this.
- apiGroups: [quire.dev]
  resources: [llmdeployments/finalizers]
  verbs: [update]
# What a deployment is made of.
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims, serviceaccounts, services]
  verbs: {{ include "quire.ownVerbs" . }}
# Whether a claim that a deployment names exists.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: {{ include "quire.ownVerbs" . }}
# Every router gets a Role to find engines by EndpointSlices. Nobody can grant what he may not do himself,
# so the operator needs that right too, and cannot make anyone mightier than itself.
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
# Pods are replaced one by one, or as a group.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.rbac.secrets }}
# Only their metadata is asked for, which RBAC cannot express.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
# What is used where the cluster has it.
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [scheduling.x-k8s.io, scheduling.volcano.sh, scheduling.k8s.io]
  resources: [podgroups, workloads]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: {{ include "quire.ownVerbs" . }}
- apiGroups: [resource.nvidia.com]
  resources: [computedomains]
  verbs: {{ include "quire.ownVerbs" . }}
{{- end }}

{{- define "quire.ownVerbs" -}}
[list, watch, create, patch, delete]
{{- end }}
