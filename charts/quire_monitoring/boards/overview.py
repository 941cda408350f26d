"""The board for the person on call: is it well, and if not, which replica is it and why."""

from quire_monitoring.boards.variables import DEPLOYMENT, NAMESPACE, REPLICA
from quire_monitoring.panels import Board, Lines, Number, Query, Row, Table
from quire_monitoring.selectors import (
    BY_REPLICA,
    DEPLOYMENT as OF_DEPLOYMENT,
    ENGINE,
    ROUTER,
    quantile,
    rate,
    share,
)

_REQUESTS = rate("quire_router_requests_total", ROUTER)
_FAILED = rate("quire_router_requests_total", f'{ROUTER},status=~"5.."')
_TOKENS = rate("quire_engine_generation_tokens_total", ENGINE)

NOW = Row(
    "Now",
    (
        Number(
            title="Replicas ready",
            help="Engine replicas that serve, as the operator counts them.",
            queries=[
                Query(
                    f'sum(quire_llmdeployment_replicas{{{OF_DEPLOYMENT},state="ready"}})', "ready"
                )
            ],
            unit="short",
        ),
        Number(
            title="Requests",
            help="Requests that routers answered, every route and status.",
            queries=[Query(_REQUESTS, "requests")],
            unit="reqps",
        ),
        Number(
            title="Failed",
            help="Share of answers that were our fault (5xx).",
            queries=[Query(share(f"({_FAILED} or vector(0))", _REQUESTS), "failed")],
            unit="percentunit",
            limits=((0.001, "yellow"), (0.05, "red")),
        ),
        Number(
            title="First token",
            help="Time from a streamed request to its first token, as clients see it.",
            queries=[
                Query(quantile("quire_router_time_to_first_token_seconds", ROUTER), "p$quantile")
            ],
            unit="s",
            limits=((2, "yellow"), (5, "red")),
        ),
        Number(
            title="Between tokens",
            help="Time between two pieces of a stream, as clients see it.",
            queries=[
                Query(quantile("quire_router_inter_token_latency_seconds", ROUTER), "p$quantile")
            ],
            unit="s",
            limits=((0.1, "yellow"), (0.2, "red")),
        ),
        Number(
            title="Tokens generated",
            help="Over all engines.",
            queries=[Query(_TOKENS, "tokens per second")],
            unit="short",
        ),
        Number(
            title="Waiting",
            help="Requests that engines have not begun with, and that routers hold.",
            queries=[
                Query(
                    f"sum(quire_engine_num_requests_waiting{{{ENGINE}}})"
                    f" + sum(quire_router_parked_requests{{{ROUTER}}})",
                    "waiting",
                )
            ],
            unit="short",
            limits=((10, "yellow"), (100, "red")),
        ),
        Number(
            title="Alerts firing",
            help="Alerts of Quire's own rules; the list is at the end of this board.",
            queries=[
                Query(
                    'count(ALERTS{alertstate="firing",alertname=~"Quire.*"}) or vector(0)', "alerts"
                )
            ],
            unit="short",
            limits=((1, "red"),),
        ),
    ),
)
TRAFFIC = Row(
    "Traffic",
    (
        Lines(
            title="Requests by status",
            help="Answers of routers; 5xx are ours, 429 and 503 say that there is no room.",
            queries=[Query(rate("quire_router_requests_total", ROUTER, "status"), "{{status}}")],
            unit="reqps",
            is_stacked=True,
        ),
        Lines(
            title="In flight",
            help="Requests being answered, those held for a replica, and those that engines queue.",
            queries=[
                Query(f"sum(quire_router_requests_in_flight{{{ROUTER}}})", "in flight"),
                Query(f"sum(quire_router_parked_requests{{{ROUTER}}})", "held by routers"),
                Query(f"sum(quire_engine_num_requests_running{{{ENGINE}}})", "running"),
                Query(f"sum(quire_engine_num_requests_waiting{{{ENGINE}}})", "waiting"),
            ],
            unit="short",
        ),
        Lines(
            title="Tokens",
            help="Prompt tokens computed and taken from caches, and tokens generated.",
            queries=[
                Query(
                    rate("quire_engine_prompt_tokens_by_source_total", ENGINE, "source"),
                    "prompt, {{source}}",
                ),
                Query(_TOKENS, "generated"),
            ],
            unit="short",
        ),
    ),
)
LATENCY = Row(
    "Latency, as clients see it",
    tuple(
        Lines(
            title=title,
            help=help_,
            queries=[
                Query(quantile(name, ROUTER, q=q), f"p{q[2:]}") for q in ("0.50", "0.95", "0.99")
            ],
            unit="s",
        )
        for title, help_, name in (
            (
                "First token",
                "From a streamed request to its first token.",
                "quire_router_time_to_first_token_seconds",
            ),
            (
                "Between tokens",
                "Between two pieces of one stream.",
                "quire_router_inter_token_latency_seconds",
            ),
            (
                "Whole request",
                "From the request to the last byte of its answer, every route.",
                "quire_router_request_duration_seconds",
            ),
        )
    ),
)
_PER_REPLICA = (
    ("running", f"sum by ({BY_REPLICA}) (quire_engine_num_requests_running{{{ENGINE}}})"),
    ("waiting", f"sum by ({BY_REPLICA}) (quire_engine_num_requests_waiting{{{ENGINE}}})"),
    ("KV cache", f"max by ({BY_REPLICA}) (quire_engine_kv_cache_usage_ratio{{{ENGINE}}})"),
    ("first token", quantile("quire_engine_time_to_first_token_seconds", ENGINE, BY_REPLICA)),
    ("queue", quantile("quire_engine_request_queue_time_seconds", ENGINE, BY_REPLICA)),
    ("between tokens", quantile("quire_engine_inter_token_latency_seconds", ENGINE, BY_REPLICA)),
    ("tokens/s", rate("quire_engine_generation_tokens_total", ENGINE, BY_REPLICA)),
    ("busy", rate("quire_engine_busy_seconds_total", ENGINE, BY_REPLICA)),
    (
        "prompt cached",
        share(
            rate("quire_engine_prefix_cache_hits_total", ENGINE, BY_REPLICA),
            rate("quire_engine_prefix_cache_queries_total", ENGINE, BY_REPLICA),
        ),
    ),
    ("preemptions/s", rate("quire_engine_num_preemptions_total", ENGINE, BY_REPLICA)),
)
REPLICAS = Row(
    "Which replica is slow, and why",
    (
        Table(
            title="Replicas",
            help="Long queue: too much work. Full KV cache with preemptions: too little memory. "
            "Slow between tokens with a short queue: a slow GPU, or long prompts beside it.",
            queries=[Query(expr, name) for name, expr in _PER_REPLICA],
            unit="short",
            renamed={"quire_dev_deployment": "deployment"},
            units={
                "first token": "s",
                "queue": "s",
                "between tokens": "s",
                "KV cache": "percentunit",
                "busy": "percentunit",
                "prompt cached": "percentunit",
            },
        ),
        Lines(
            title="First token by replica",
            help="At the chosen quantile, as engines see it.",
            queries=[
                Query(
                    quantile("quire_engine_time_to_first_token_seconds", ENGINE, "pod"), "{{pod}}"
                )
            ],
            unit="s",
        ),
        Lines(
            title="Waiting by replica",
            help="Requests not yet begun with.",
            queries=[
                Query(f"sum by (pod) (quire_engine_num_requests_waiting{{{ENGINE}}})", "{{pod}}")
            ],
            unit="short",
        ),
        Lines(
            title="KV cache by replica",
            help="Share of blocks that live requests hold. At 1, requests wait or are preempted.",
            queries=[
                Query(f"max by (pod) (quire_engine_kv_cache_usage_ratio{{{ENGINE}}})", "{{pod}}")
            ],
            unit="percentunit",
            limits=((0.95, "red"),),
            max_value=1,
        ),
    ),
)
PROMISES = Row(
    "Promises and cost",
    (
        Lines(
            title="Error budget burn",
            help="How many times faster than planned the budget of failed requests is spent, by "
            "window. 1 spends it all in the SLO's 30 days.",
            queries=[
                Query(
                    f"quire:request_errors:burn_{window}{{{ROUTER}}}",
                    f"{{{{quire_dev_deployment}}}}, {window}",
                )
                for window in ("5m", "1h", "6h")
            ],
            unit="short",
            limits=((1, "yellow"), (14.4, "red")),
        ),
        Lines(
            title="Goodput",
            help="Requests that met the targets given with --slo-ttft-ms and --slo-itl-ms, and "
            "those that did not; nothing without targets.",
            queries=[
                Query(rate("quire_router_slo_requests_total", ROUTER, "result"), "{{result}}")
            ],
            unit="reqps",
            is_stacked=True,
        ),
        Lines(
            title="Cost of a million tokens",
            help="Price of a replica for an hour, times the replicas ready, over tokens.",
            queries=[
                Query(
                    f'$price * sum(quire_llmdeployment_replicas{{{OF_DEPLOYMENT},state="ready"}})'
                    f" / 3600 / ({_TOKENS} > 0) * 1e6",
                    "per million tokens",
                )
            ],
            unit="currencyUSD",
        ),
    ),
)
ALERTS = Row(
    "Alerts",
    (
        Table(
            title="Firing",
            help="What fires, with its severity; each has a section in the runbook.",
            queries=[
                Query(
                    "max by (alertname, severity, namespace, quire_dev_deployment, name, pod)"
                    ' (ALERTS{alertstate="firing",alertname=~"Quire.*"})',
                    "firing",
                )
            ],
            unit="short",
            hidden=("Value",),
            renamed={"quire_dev_deployment": "deployment"},
            no_data="none",
        ),
    ),
)

OVERVIEW = Board(
    uid="quire-overview",
    title="Quire / Overview",
    help="For the person on call: whether it is well, and which replica is slow and why.",
    rows=(NOW, TRAFFIC, LATENCY, REPLICAS, PROMISES, ALERTS),
    variables=(NAMESPACE, DEPLOYMENT, REPLICA),
    texts={"price": ("Price of a replica per hour", "3")},
)
