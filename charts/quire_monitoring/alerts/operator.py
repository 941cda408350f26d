"""Alerts about the operator. What serves goes on without it; nothing is repaired meanwhile."""

from quire_monitoring.rules import Alert, Group, Severity

_LOGS = (
    "`kubectl logs -n quire-system -l app.kubernetes.io/component=operator --tail=100 --prefix`, "
    "and "
    "look for `error`."
)
_PODS = "`kubectl get pods,lease -n quire-system`"

OPERATOR_ALERTS = Group(
    "quire-alerts-operator",
    [
        Alert(
            name="QuireOperatorDown",
            severity=Severity.CRITICAL,
            expr="absent(quire_operator_leader == 1)",
            lasting="5m",
            summary="No pod of the operator leads",
            meaning="Deployments serve on, but nothing is rolled out, replaced or scaled. The "
            "operator "
            "does not run, cannot get its Lease, or Prometheus does not reach it.",
            look=(_PODS, _LOGS, "`kubectl describe lease -n quire-system quire-operator`"),
        ),
        Alert(
            name="QuireOperatorReconcileErrors",
            severity=Severity.WARNING,
            expr="sum by (namespace, controller) (rate(controller_runtime_reconcile_errors_total"
            '{controller="llmdeployment"}[10m])) > 0',
            lasting="15m",
            summary="The operator fails to reconcile, again and again",
            meaning="At least one deployment is not what its spec says. The API server refuses a "
            "write (rights, quota, an admission webhook), or is out of reach.",
            look=(
                _LOGS,
                "Board *Operator*, *Requests to the API server*: 403 and 422 are refusals.",
                "`kubectl get llmd -A -o wide`: the condition `Applied` is False where a write was "
                "refused, with the server's words.",
            ),
        ),
        Alert(
            name="QuireOperatorBacklog",
            severity=Severity.WARNING,
            expr='max by (namespace, controller) (workqueue_depth{controller="llmdeployment"}) > 20'
            " or max by (namespace, controller)"
            ' (workqueue_longest_running_processor_seconds{controller="llmdeployment"}) > 120',
            lasting="10m",
            summary="Deployments wait for the operator",
            meaning="Changes are carried out late. The API server is slow or throttles, or one "
            "reconcile hangs.",
            look=(
                "Board *Operator*, *Waiting and working* and *Requests to the API server*.",
                _LOGS,
                "More at a time: `operator.extraArgs: [--num-workers=128]`.",
            ),
        ),
        Alert(
            name="QuireOperatorBlind",
            severity=Severity.WARNING,
            expr="quire_operator_watch_silence_seconds > 600"
            " and on (namespace, pod, instance) quire_operator_leader == 1",
            lasting="5m",
            summary="The operator has heard nothing of {{ $labels.kind }} for "
            "{{ $value | humanizeDuration }}",
            meaning="A watch hangs: changes of these objects go unnoticed until it begins again.",
            look=(
                _LOGS,
                "`kubectl delete pod -n quire-system POD`: another one takes over within seconds.",
            ),
        ),
    ],
)
