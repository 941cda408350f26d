"""Alerts about what users get: errors and latency."""

from quire_monitoring.recordings import threshold
from quire_monitoring.rules import Alert, Group, Severity

_ABOUT = "{{ $labels.namespace }}/{{ $labels.quire_dev_deployment }}"
_BY_STATUS = (
    "Board *Overview*, *Requests by status*: 503 says that no replica was available, 500 and 502 "
    "that "
    "one failed."
)
_BY_REASON = "Board *Cache and routing*, *Not served, by replica and reason*: is it one replica?"
_LOGS = (
    "`kubectl logs -n NAMESPACE -l quire.dev/deployment=NAME --prefix --tail=200 | grep -i error`"
)
_EVENTS = "`kubectl describe llmd NAME -n NAMESPACE`: conditions and events of the last hour."


def _burn(long: str, short: str, factor: float) -> str:
    return (
        f"quire:request_errors:burn_{long} > {factor}"
        f" and on (namespace, quire_dev_deployment) quire:request_errors:burn_{short} > {factor}"
    )


REQUEST_ALERTS = Group(
    "quire-alerts-requests",
    [
        Alert(
            name="QuireErrorBudgetBurnFast",
            severity=Severity.CRITICAL,
            expr=_burn("1h", "5m", 14.4),
            lasting="2m",
            summary=f"{_ABOUT} fails so many requests that 2% of a month's budget went in an hour",
            meaning="Users see errors now. The share of failed requests (5xx) is more than 14 "
            "times "
            "what the error budget plans, over an hour and still over the last 5 minutes.",
            look=(_BY_STATUS, _BY_REASON, _EVENTS, _LOGS),
        ),
        Alert(
            name="QuireErrorBudgetBurnSlow",
            severity=Severity.WARNING,
            expr=_burn("6h", "30m", 6),
            lasting="15m",
            summary=f"{_ABOUT} fails so many requests that 5% of a month's budget went in 6 hours",
            meaning="A steady share of requests fails (5xx), at 6 times what the error budget "
            "plans.",
            look=(_BY_STATUS, _BY_REASON, _EVENTS, _LOGS),
        ),
        Alert(
            name="QuireFirstTokenSlow",
            severity=Severity.WARNING,
            expr=f"quire:time_to_first_token_seconds:p99 > {threshold('firstTokenSeconds')}",
            lasting="10m",
            summary=f"{_ABOUT}: one request of a hundred waits {{{{ $value | humanizeDuration }}}} "
            "for its first token",
            meaning="Usually a queue: more prompts come than the replicas can prefill. Else long "
            "prompts that no cache has, or one slow replica.",
            look=(
                "Board *Overview*, table *Replicas*: a long queue everywhere asks for replicas, a "
                "long queue on one for *Cache and routing*, *Load skew*.",
                "Board *Model*: is the time in *Queue* or in *Prefill*? Have prompts grown "
                "(*Prompt*)?",
                "More replicas: `kubectl scale llmd NAME -n NAMESPACE --replicas=N`, or raise "
                "`spec.autoscaling.maxReplicas`.",
            ),
        ),
        Alert(
            name="QuireInterTokenSlow",
            severity=Severity.WARNING,
            expr=f"quire:inter_token_latency_seconds:p99 > {threshold('interTokenSeconds')}",
            lasting="10m",
            summary=f"{_ABOUT}: streams pause for {{{{ $value | humanizeDuration }}}}",
            meaning="Text comes haltingly. Usually long prompts are prefilled between decode "
            "steps, "
            "or sequences are preempted; else a GPU is slow or shared.",
            look=(
                "Board *Model*, *Between tokens*: a second band far above the first is prefill; "
                "lower "
                "`--max-num-batched-tokens`.",
                "Board *Model*, *Preemptions* and *KV cache*: see QuirePreemptionsHigh.",
                "Board *Model*, *Decode step* by replica: is one slower than the others? On its "
                "node, "
                "`nvidia-smi -q -d CLOCK,PERFORMANCE,TEMPERATURE`.",
            ),
        ),
    ],
)
