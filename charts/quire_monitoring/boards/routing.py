"""Where routers send requests, what they know of the replicas' caches, and what it gains."""

from quire_monitoring.boards.variables import DEPLOYMENT, NAMESPACE, REPLICA_ADDRESS
from quire_monitoring.panels import Board, Lines, Number, Query, Row, States, Table
from quire_monitoring.selectors import ROUTER, TOWARDS, increase, mean, quantile, rate, share

_R = "quire_router_replica_"
_CACHED = rate(f"{_R}cached_tokens_total", TOWARDS)
_EXPECTED = rate(f"{_R}expected_cached_tokens_total", TOWARDS)
_SENT = rate(f"{_R}prompt_tokens_total", TOWARDS)


def _gauge(title: str, help_: str, name: str, unit: str = "short") -> Lines:
    return Lines(
        title=title,
        help=help_,
        queries=[Query(f"sum by (replica) ({_R}{name}{{{TOWARDS}}})", "{{replica}}")],
        unit=unit,
    )


def _increase(title: str, help_: str, counter: str) -> Lines:
    return Lines(
        title=title,
        help=help_,
        queries=[Query(increase(f"{_R}{counter}", TOWARDS, "replica"), "{{replica}}")],
        unit="short",
    )


SUMMARY = Row(
    "Summary",
    (
        Number(
            title="Replicas up",
            help="Replicas that a router can send requests to; the lowest of all routers.",
            queries=[
                Query(f"min(sum by (pod, instance) ({_R}up{{{TOWARDS}}}))", "up"),
            ],
            unit="short",
            width=6,
        ),
        Number(
            title="Prompt tokens found cached",
            help="Share of the prompt tokens sent that replicas did not have to compute.",
            queries=[Query(share(_CACHED, _SENT), "cached")],
            unit="percentunit",
            width=6,
        ),
        Number(
            title="Expectation kept",
            help="Tokens found cached, over those that decisions expected. Far below 1: the index "
            "is stale, or caches are too small.",
            queries=[Query(share(_CACHED, _EXPECTED), "found of expected")],
            unit="percentunit",
            width=6,
        ),
        Number(
            title="Load skew",
            help="Busiest replica over the mean; 1 is even.",
            queries=[
                Query(
                    f"max(sum by (replica) ({_R}in_flight{{{TOWARDS}}}))"
                    f" / (avg(sum by (replica) ({_R}in_flight{{{TOWARDS}}})) > 0)",
                    "max over mean",
                )
            ],
            unit="short",
            limits=((2, "yellow"), (3, "red")),
            width=6,
        ),
    ),
)
PLACEMENT = Row(
    "Where requests go",
    (
        Lines(
            title="Requests by replica",
            help="Requests sent, retries included.",
            queries=[Query(rate(f"{_R}requests_total", TOWARDS, "replica"), "{{replica}}")],
            unit="reqps",
            is_stacked=True,
        ),
        _gauge("In flight by replica", "Requests that routers have there.", "in_flight"),
        _gauge(
            "Queued tokens by replica",
            "Prompt tokens yet to compute, as decisions see it.",
            "queued_tokens",
        ),
        States(
            title="State",
            help="The state of each replica; the worst of what routers say.",
            queries=[
                Query(
                    f"count by (replica, state) ({_R}state{{{TOWARDS}}} == 1)",
                    "{{replica}}: {{state}}",
                )
            ],
            unit="short",
        ),
        Lines(
            title="Not served, by replica and reason",
            help="refused and full are not the replica's fault; lost and fault are.",
            queries=[
                Query(
                    rate(f"{_R}failures_total", TOWARDS, "replica, reason"),
                    "{{replica}}: {{reason}}",
                )
            ],
            unit="reqps",
        ),
        Lines(
            title="Retries by reason",
            help="Requests that went to another replica after one failed them.",
            queries=[Query(rate("quire_router_retries_total", ROUTER, "reason"), "{{reason}}")],
            unit="reqps",
        ),
        _gauge(
            "Circuit breaker", "1 while a router keeps requests away, per router.", "breaker_open"
        ),
        _increase(
            "Sessions opened",
            "More than a few: connections are lost.",
            "connections_total",
        ),
        Lines(
            title="Clients gone early",
            help="Requests whose client went away before the end, by route.",
            queries=[
                Query(rate("quire_router_client_disconnects_total", ROUTER, "route"), "{{route}}")
            ],
            unit="reqps",
        ),
    ),
)
CACHE = Row(
    "What caches give",
    (
        Lines(
            title="Prompt tokens found cached, by replica",
            help="Share of the prompt tokens sent there.",
            queries=[
                Query(
                    share(
                        rate(f"{_R}cached_tokens_total", TOWARDS, "replica"),
                        rate(f"{_R}prompt_tokens_total", TOWARDS, "replica"),
                    ),
                    "{{replica}}",
                )
            ],
            unit="percentunit",
            max_value=1,
        ),
        Lines(
            title="Expected and found",
            help="Cached tokens that decisions counted on, and what replicas found.",
            queries=[Query(_EXPECTED, "expected"), Query(_CACHED, "found"), Query(_SENT, "sent")],
            unit="short",
        ),
        Lines(
            title="Knowledge of caches",
            help="Replicas by where the knowledge comes from: exact events, or the router's own "
            "history (degraded).",
            queries=[Query(f"sum by (mode) ({_R}prefix_index_mode{{{TOWARDS}}})", "{{mode}}")],
            unit="short",
            is_stacked=True,
        ),
        _gauge("Blocks known", "Blocks that routers believe cached there.", "prefix_index_blocks"),
        Lines(
            title="Age of the knowledge",
            help="Time since the last event of the replica's cache; an idle replica has none.",
            queries=[
                Query(
                    f"max by (replica) ({_R}prefix_index_age_seconds{{{TOWARDS}}})", "{{replica}}"
                )
            ],
            unit="s",
        ),
        _increase(
            "Subscriptions to cache events",
            "Each but the first follows a gap, after which all is told anew.",
            "kv_subscriptions_total",
        ),
    ),
)
DECISIONS = Row(
    "What decisions are worth",
    (
        Lines(
            title="Decisions by match",
            help="By how much of the prompt the chosen replica was expected to have cached.",
            queries=[Query(rate("quire_router_decisions_total", ROUTER, "prefix"), "{{prefix}}")],
            unit="ops",
            is_stacked=True,
        ),
        Lines(
            title="Tokens saved by match",
            help="Share of prompt tokens that decisions expected to be cached.",
            queries=[
                Query(
                    share(
                        rate(
                            "quire_router_decision_expected_cached_tokens_total", ROUTER, "prefix"
                        ),
                        rate("quire_router_decision_prompt_tokens_total", ROUTER, "prefix"),
                    ),
                    "{{prefix}}",
                )
            ],
            unit="percentunit",
            max_value=1,
        ),
        Lines(
            title="First token by replica",
            help="Mean, from sending the request there to its first token.",
            queries=[
                Query(mean(f"{_R}time_to_first_token_seconds", TOWARDS, "replica"), "{{replica}}")
            ],
            unit="s",
        ),
        _gauge("Age of load reports", "Old ones make poor decisions.", "load_age_seconds", "s"),
        _gauge("Decode step by replica", "As its load reports say.", "decode_step_seconds", "s"),
        Lines(
            title="Cancelled by replica",
            help="Requests that were taken back, their client being gone.",
            queries=[Query(rate(f"{_R}cancelled_total", TOWARDS, "replica"), "{{replica}}")],
            unit="reqps",
        ),
    ),
)
COST = Row(
    "What routing costs",
    (
        Lines(
            title="Time to choose",
            help="Hashing of the prompt apart.",
            queries=[
                Query(quantile("quire_router_decision_seconds", ROUTER), "p$quantile"),
                Query(mean("quire_router_decision_seconds", ROUTER, "mode"), "mean, {{mode}}"),
            ],
            unit="s",
        ),
        Lines(
            title="Tokenizing",
            help="Of texts that were not in the router's cache.",
            queries=[
                Query(quantile("quire_router_tokenize_seconds", ROUTER), "p$quantile"),
            ],
            unit="s",
        ),
        Lines(
            title="Tokenizer's cache",
            help="Texts looked up, by result.",
            queries=[
                Query(rate("quire_router_tokenizer_cache_total", ROUTER, "result"), "{{result}}")
            ],
            unit="ops",
            is_stacked=True,
        ),
        Lines(
            title="Event loop lag",
            help="How late a router does what is due: it is short of CPU when this grows.",
            queries=[
                Query(quantile("quire_router_event_loop_lag_seconds", ROUTER, "pod"), "{{pod}}")
            ],
            unit="s",
            limits=((0.1, "red"),),
        ),
        Lines(
            title="Held for a replica",
            help="Requests that wait until a replica is ready.",
            queries=[Query(f"sum by (pod) (quire_router_parked_requests{{{ROUTER}}})", "{{pod}}")],
            unit="short",
        ),
        Lines(
            title="Tokens, as routers count them",
            help="Of prompts, of prompts found cached, and generated.",
            queries=[
                Query(rate("quire_router_prompt_tokens_total", ROUTER), "prompt"),
                Query(rate("quire_router_cached_prompt_tokens_total", ROUTER), "cached"),
                Query(rate("quire_router_completion_tokens_total", ROUTER), "generated"),
            ],
            unit="short",
        ),
    ),
)
PROCESSES = Row(
    "Processes of routers",
    (
        Lines(
            title="Workers",
            help="Processes of a router that accept requests.",
            queries=[Query(f"sum by (pod) (quire_router_workers{{{ROUTER}}})", "{{pod}}")],
            unit="short",
        ),
        Lines(
            title="Workers restarted",
            help="Each had ended, and its streams with it; 0 is right.",
            queries=[
                Query(increase("quire_router_worker_restarts_total", ROUTER, "pod"), "{{pod}}"),
            ],
            unit="short",
        ),
        Lines(
            title="Cores used",
            help="By all processes of a router. A worker uses one at most; more of them: "
            "--workers.",
            queries=[
                Query(
                    f"sum by (pod) (rate(process_cpu_seconds_total{{{ROUTER}}}[$__rate_interval])"
                    f" and on (namespace, pod, instance) quire_router_workers{{{ROUTER}}})",
                    "{{pod}}",
                )
            ],
            unit="short",
        ),
    ),
)
DISCOVERY = Row(
    "How replicas are found",
    (
        Lines(
            title="Age of discovery",
            help="Time since the source was last heard. Old: new replicas go unnoticed.",
            queries=[
                Query(
                    f"max by (pod, source) (quire_router_discovery_age_seconds{{{ROUTER}}})",
                    "{{pod}} {{source}}",
                )
            ],
            unit="s",
            limits=((120, "red"),),
        ),
        Lines(
            title="Endpoints",
            help="Of the source, by state.",
            queries=[
                Query(
                    f"max by (source, state) (quire_router_discovery_endpoints{{{ROUTER}}})",
                    "{{source}}: {{state}}",
                )
            ],
            unit="short",
        ),
        Lines(
            title="Lists and failures",
            help="Complete sets asked for, and attempts that failed, by reason.",
            queries=[
                Query(rate("quire_router_discovery_lists_total", ROUTER, "source"), "{{source}}"),
                Query(
                    rate("quire_router_discovery_failures_total", ROUTER, "source, reason"),
                    "{{source}}: {{reason}}",
                ),
            ],
            unit="ops",
        ),
        Table(
            title="Replicas and their pods",
            help="Which pod, on which node, an address belongs to.",
            queries=[
                Query(
                    "max by (replica, exported_pod, node)"
                    f" (quire_router_replica_info{{{TOWARDS}}})",
                    "info",
                )
            ],
            unit="short",
            hidden=("Value",),
            renamed={"exported_pod": "pod"},
        ),
    ),
)

ROUTING = Board(
    uid="quire-routing",
    title="Quire / Cache and routing",
    help="Where routers send requests, what they know of caches, and what it gains and costs.",
    rows=(SUMMARY, PLACEMENT, CACHE, DECISIONS, COST, PROCESSES, DISCOVERY),
    variables=(NAMESPACE, DEPLOYMENT, REPLICA_ADDRESS),
)
