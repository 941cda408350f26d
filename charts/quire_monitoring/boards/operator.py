"""The operator: what it makes of deployments, how busy it is, how it talks to the cluster."""

from quire_monitoring.boards.variables import NAMESPACE, OPERATED
from quire_monitoring.panels import Board, Lines, Number, Query, Row, Table
from quire_monitoring.selectors import DEPLOYMENT, OPERATOR, quantile, rate

_C = "controller_runtime_"
_GOOD = 'type!~"ReconciliationPaused|Degraded",status="True"'
_BAD = 'type=~"ReconciliationPaused|Degraded",status="False"'


def _lines(title: str, help_: str, expr: str, legend: str, unit: str) -> Lines:
    return Lines(title=title, help=help_, queries=[Query(expr, legend)], unit=unit)


DEPLOYMENTS = Row(
    "Deployments",
    (
        Number(
            title="Leaders",
            help="Operator pods that write. Exactly one is right.",
            queries=[Query("sum(quire_operator_leader)", "leaders")],
            unit="short",
            width=6,
        ),
        Number(
            title="Deployments",
            help="LLMDeployments with a status.",
            queries=[
                Query(
                    f'count(quire_llmdeployment_replicas{{{DEPLOYMENT},state="current"}})',
                    "deployments",
                )
            ],
            unit="short",
            width=6,
        ),
        Number(
            title="Not ready",
            help="LLMDeployments whose condition Ready is not True.",
            queries=[
                Query(
                    "count(quire_llmdeployment_condition"
                    f'{{{DEPLOYMENT},type="Ready",status="True"}} == 0) or vector(0)',
                    "not ready",
                )
            ],
            unit="short",
            limits=((1, "yellow"),),
            width=6,
        ),
        Number(
            title="Failing to reconcile",
            help="Reconciles that failed and are tried again.",
            queries=[Query(rate(f"{_C}reconcile_errors_total", OPERATOR), "errors")],
            unit="ops",
            limits=((0.01, "yellow"), (0.1, "red")),
            width=6,
        ),
        Table(
            title="What is not as it should be",
            help="Conditions that are neither good nor absent; `kubectl describe llmd` says why.",
            queries=[
                Query(
                    "max by (namespace, name, type)"
                    f" (quire_llmdeployment_condition{{{DEPLOYMENT},{_GOOD}}} == 0"
                    f" or quire_llmdeployment_condition{{{DEPLOYMENT},{_BAD}}} == 0)",
                    "good",
                )
            ],
            unit="short",
            hidden=("Value",),
            width=12,
            no_data="all is well",
        ),
        Table(
            title="Replicas",
            help="Existing, serving, and of the newest revision.",
            queries=[
                Query(
                    "max by (namespace, name)"
                    f' (quire_llmdeployment_replicas{{{DEPLOYMENT},state="{state}"}})',
                    state,
                )
                for state in ("current", "ready", "updated", "available")
            ],
            unit="short",
            width=12,
        ),
        _lines(
            "Replicas ready",
            "By deployment.",
            "max by (namespace, name)"
            f' (quire_llmdeployment_replicas{{{DEPLOYMENT},state="ready"}})',
            "{{namespace}}/{{name}}",
            "short",
        ),
        _lines(
            "Rollouts",
            "Replicas that are not yet of the newest revision.",
            "max by (namespace, name)"
            f' (quire_llmdeployment_replicas{{{DEPLOYMENT},state="current"}})'
            " - max by (namespace, name)"
            f' (quire_llmdeployment_replicas{{{DEPLOYMENT},state="updated"}})',
            "{{namespace}}/{{name}}",
            "short",
        ),
        _lines(
            "Conditions",
            "Conditions by type that are True.",
            f'sum by (type) (quire_llmdeployment_condition{{{DEPLOYMENT},status="True"}})',
            "{{type}}",
            "short",
        ),
    ),
)
RECONCILING = Row(
    "Reconciling",
    (
        _lines(
            "Reconciles",
            "By result.",
            rate(f"{_C}reconcile_total", OPERATOR, "result"),
            "{{result}}",
            "ops",
        ),
        _lines(
            "Time of a reconcile",
            "At the chosen quantile.",
            quantile(f"{_C}reconcile_time_seconds", OPERATOR),
            "p$quantile",
            "s",
        ),
        Lines(
            title="Errors",
            help="terminal: only a change of the object helps; panics: a bug.",
            queries=[
                Query(rate(f"{_C}reconcile_errors_total", OPERATOR), "tried again"),
                Query(rate(f"{_C}terminal_reconcile_errors_total", OPERATOR), "terminal"),
                Query(rate(f"{_C}reconcile_panics_total", OPERATOR), "panics"),
            ],
            unit="ops",
        ),
        Lines(
            title="Queue",
            help="Deployments that are due, and those that failed.",
            queries=[
                Query(f"sum(workqueue_depth{{{OPERATOR}}})", "due"),
                Query(f"sum(increase(workqueue_adds_total{{{OPERATOR}}}[5m]))", "added in 5 min"),
                Query(
                    f"sum(increase(workqueue_retries_total{{{OPERATOR}}}[5m]))", "failed in 5 min"
                ),
            ],
            unit="short",
        ),
        Lines(
            title="Waiting and working",
            help="How long deployments were due, and how long a worker had them.",
            queries=[
                Query(quantile("workqueue_queue_duration_seconds", OPERATOR), "due"),
                Query(quantile("workqueue_work_duration_seconds", OPERATOR), "worked on"),
                Query(f"max(workqueue_longest_running_processor_seconds{{{OPERATOR}}})", "longest"),
                Query(f"max(workqueue_unfinished_work_seconds{{{OPERATOR}}})", "unfinished"),
            ],
            unit="s",
        ),
        Lines(
            title="Workers",
            help="Reconciles at a time, and the most that are allowed.",
            queries=[
                Query(f"sum({_C}active_workers{{{OPERATOR}}})", "active"),
                Query(f"max({_C}max_concurrent_reconciles{{{OPERATOR}}})", "most"),
            ],
            unit="short",
        ),
    ),
)
CLUSTER = Row(
    "Talking to the cluster",
    (
        Lines(
            title="Requests to the API server",
            help="By status code and method; 409 are conflicts, 429 is the server's own limit.",
            queries=[
                Query(
                    "sum by (code, method) (rate(rest_client_requests_total"
                    "[$__rate_interval]) and on (namespace, pod, instance) quire_operator_leader)",
                    "{{method}} {{code}}",
                )
            ],
            unit="reqps",
        ),
        _lines(
            "Writes",
            "By verb and kind; none while nothing changes.",
            "sum by (verb, kind) (rate(quire_operator_writes_total[$__rate_interval]))",
            "{{verb}} {{kind}}",
            "ops",
        ),
        _lines(
            "Watch events",
            "By kind.",
            "sum by (kind) (rate(quire_operator_watch_events_total[$__rate_interval]))",
            "{{kind}}",
            "ops",
        ),
        _lines(
            "Silence of watches",
            "How long ago a watch last heard anything, bookmarks included.",
            "max by (kind) (quire_operator_watch_silence_seconds)",
            "{{kind}}",
            "s",
        ),
        _lines(
            "Lists begun again",
            "Times in 5 minutes that a watch had to list anew, by kind and why.",
            "sum by (kind, reason) (increase(quire_operator_relists_total[5m]))",
            "{{kind}}: {{reason}}",
            "short",
        ),
        _lines(
            "Objects in memory",
            "By kind.",
            "max by (kind) (quire_operator_objects)",
            "{{kind}}",
            "short",
        ),
        Lines(
            title="Leadership",
            help="1 for the pod that writes.",
            queries=[Query("max by (pod) (quire_operator_leader)", "{{pod}}")],
            unit="short",
            max_value=1,
            width=12,
        ),
        Lines(
            title="Restarts of kopf",
            help="Times in 5 minutes that kopf ended with an error.",
            queries=[Query("sum(increase(quire_operator_kopf_restarts_total[5m]))", "restarts")],
            unit="short",
            width=12,
        ),
    ),
)

OPERATOR_BOARD = Board(
    uid="quire-operator",
    title="Quire / Operator",
    help="Deployments as the operator sees them, and the operator itself.",
    rows=(DEPLOYMENTS, RECONCILING, CLUSTER),
    variables=(NAMESPACE, OPERATED),
)
