"""Alerts about what the operator says of deployments."""

from quire_monitoring.rules import Alert, Group, Severity

_ABOUT = "{{ $labels.namespace }}/{{ $labels.name }}"
_DESCRIBE = "`kubectl describe llmd NAME -n NAMESPACE`: the condition's message has the next step."
_PODS = "`kubectl get pods -n NAMESPACE -l quire.dev/deployment=NAME -o wide`"
_PREVIOUS = "`kubectl logs -n NAMESPACE POD --previous --tail=100`: the last words before it ended."


def _reason(type_: str, matcher: str) -> str:
    # Every pod of the operator reports; they mean the same deployment.
    return (
        "max by (namespace, name, reason) (quire_llmdeployment_condition_reason"
        f'{{type="{type_}",reason{matcher}}}) == 1'
    )


DEPLOYMENT_ALERTS = Group(
    "quire-alerts-deployments",
    [
        Alert(
            name="QuireNoReadyReplicas",
            severity=Severity.CRITICAL,
            expr='max by (namespace, name) (quire_llmdeployment_replicas{state="ready"}) == 0'
            " and on (namespace, name) "
            + _reason("WorkloadAvailable", '="MinimumReplicasUnavailable"')
            + " and on (namespace, name) max by (namespace, name)"
            ' (max_over_time(quire_llmdeployment_replicas{state="ready"}[1h])) > 0',
            lasting="2m",
            summary=f"{_ABOUT} served within the last hour, and has no ready replica now",
            meaning="Every request fails or waits. A node is lost, engines crash, or a change of "
            "the "
            "spec took all replicas at once.",
            look=(
                _PODS,
                _PREVIOUS,
                "`kubectl get events -n NAMESPACE --sort-by=.lastTimestamp | tail -30`",
                "If a change of the spec did it, apply the previous one.",
            ),
        ),
        Alert(
            name="QuireDeploymentNotReady",
            severity=Severity.WARNING,
            expr=_reason("Ready", '=~"PodsNotReady|RouterNotReady|Updating"'),
            lasting="30m",
            summary=f"{_ABOUT} is not ready: {{{{ $labels.reason }}}}",
            meaning="Fewer pods are ready than the spec wants, for longer than starting takes.",
            look=(_DESCRIBE, _PODS, _PREVIOUS),
        ),
        Alert(
            name="QuireSpecRejected",
            severity=Severity.WARNING,
            expr=_reason("Accepted", '!="Valid"'),
            lasting="5m",
            summary=f"{_ABOUT} cannot be what its spec says: {{{{ $labels.reason }}}}",
            meaning="The operator leaves what runs as it is and does not carry out the new spec.",
            look=(_DESCRIBE, "Correct the spec, or make the object that it refers to."),
        ),
        Alert(
            name="QuireRolloutStuck",
            severity=Severity.WARNING,
            expr=_reason("Progressing", '="ProgressDeadlineExceeded"'),
            lasting="1m",
            summary=f"{_ABOUT}: a rollout has made no progress",
            meaning="A pod of the new revision does not become ready; the old ones serve on. Often "
            "a wrong image, flag or model, or a node without room for one more.",
            look=(
                _DESCRIBE,
                _PODS,
                "`kubectl logs -n NAMESPACE POD` of the newest pod.",
                "Undo it by applying the previous spec: pods that are not ready go first.",
            ),
        ),
        Alert(
            name="QuireCapacityMissing",
            severity=Severity.WARNING,
            expr=_reason("Ready", '="InsufficientCapacity"'),
            lasting="15m",
            summary=f"{_ABOUT} has fewer replicas than wanted: no node has the GPUs",
            meaning="Pods wait until GPUs are free. An autoscaler of nodes usually helps within "
            "minutes; after a quarter of an hour none came.",
            look=(
                _DESCRIBE,
                "`kubectl get nodes -o json | quire plan MODEL --nodes -` says what would fit.",
                "`kubectl get nodes -L nvidia.com/gpu.product,nvidia.com/gpu.count`",
            ),
        ),
        Alert(
            name="QuireModelDownloadFailed",
            severity=Severity.WARNING,
            expr=_reason("ModelCached", '=~"DownloadFailed|AuthFailed"'),
            lasting="1m",
            summary=f"{_ABOUT}: the weights cannot be fetched: {{{{ $labels.reason }}}}",
            meaning="AuthFailed: the token is missing, wrong, or has no access to the model. "
            "DownloadFailed: the hub is out of reach, or the claim is too small.",
            look=(
                _DESCRIBE,
                "`kubectl logs -n NAMESPACE -l quire.dev/deployment=NAME,app.kubernetes.io/"
                "component=weights --tail=50`",
                "After the repair, delete the Job that the message names; it starts again.",
            ),
        ),
        Alert(
            name="QuireReplicasLost",
            severity=Severity.WARNING,
            expr='max by (namespace, name) (quire_llmdeployment_condition{type="Degraded",'
            'status="True"}) == 1',
            lasting="10m",
            summary=f"{_ABOUT} has lost replicas that were ready",
            meaning="The others carry the load. A node went away, or a pod fails again and again.",
            look=(_DESCRIBE, _PODS, _PREVIOUS, "`kubectl describe node NODE` of the pod's node."),
        ),
        Alert(
            name="QuireAutoscalerFailing",
            severity=Severity.WARNING,
            expr=_reason("AutoscalerReady", '!~"Ready|NotRequired"'),
            lasting="15m",
            summary=f"{_ABOUT} is not scaled: {{{{ $labels.reason }}}}",
            meaning="Replicas stay as they are, whatever the load. Usually the metrics that the "
            "autoscaler reads do not reach it.",
            look=(
                _DESCRIBE,
                "`kubectl describe hpa -n NAMESPACE`, or `kubectl describe scaledobject`.",
                "`kubectl get --raw /apis/custom.metrics.k8s.io/v1beta1 | head -c 500`: does an "
                "adapter answer?",
            ),
        ),
    ],
)
