"""Series that alerts and boards read, computed from what engines and routers report."""

from collections.abc import Mapping

from quire_monitoring.rules import Group, Recording
from quire_monitoring.selectors import BY_DEPLOYMENT, BY_REPLICA

THRESHOLDS: Mapping[str, float] = {
    "errorBudget": 0.001,
    "firstTokenSeconds": 5,
    "interTokenSeconds": 0.2,
    "waitingPerReplica": 16,
    "loadSkew": 3,
}
"""Limits that suit no model equally, by their names in the chart's values."""
WINDOWS = ("5m", "30m", "1h", "6h")

_API = 'route=~"/v1/.*"'
_R = "quire_router_"
_E = "quire_engine_"


def threshold(name: str) -> str:
    """Return the limit as a scalar: whoever installs the rules sets it, no rule repeats it."""
    assert name in THRESHOLDS, f"no threshold is called {name}"
    return f"scalar({_threshold_series(name)})"


def _threshold_series(name: str) -> str:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return f"quire:threshold:{snake}"


def _rate(counter: str, selector: str, window: str, by: str = BY_DEPLOYMENT) -> str:
    inner = f"rate({counter}{{{selector}}}[{window}])" if selector else f"rate({counter}[{window}])"
    return f"sum by ({by}) ({inner})"


def _error_ratio(window: str) -> str:
    whole = _rate(f"{_R}requests_total", _API, window)
    failed = _rate(f"{_R}requests_total", f'{_API},status=~"5.."', window)
    # Where nothing ever failed there is no such series, and the ratio is 0.
    return f"({failed} or 0 * {whole}) / ({whole} > 0)"


def _p99(histogram: str) -> str:
    buckets = _rate(f"{_R}{histogram}_bucket", "", "5m", f"le, {BY_DEPLOYMENT}")
    return f"histogram_quantile(0.99, {buckets})"


def _hit_ratio(window: str) -> str:
    hits = _rate(f"{_E}prefix_cache_hits_total", "", window)
    return f"{hits} / ({_rate(f'{_E}prefix_cache_queries_total', '', window)} > 0)"


_PREEMPTIONS = _rate(f"{_E}num_preemptions_total", "", "10m")
_FINISHED = _rate(f"{_E}request_success_total", "", "10m")
_LOAD = f"sum by ({BY_REPLICA}) ({_E}num_requests_running + {_E}num_requests_waiting)"

THRESHOLD_GROUP = Group(
    "quire-thresholds",
    [Recording(_threshold_series(name), f"vector({value})") for name, value in THRESHOLDS.items()],
)
"""Apart from the others: the chart replaces it by what the values say."""
REQUEST_GROUP = Group(
    "quire-requests",
    [
        Recording("quire:requests:rate5m", _rate(f"{_R}requests_total", _API, "5m")),
        *(Recording(f"quire:request_errors:ratio_{w}", _error_ratio(w)) for w in WINDOWS),
        *(
            Recording(
                f"quire:request_errors:burn_{w}",
                f"quire:request_errors:ratio_{w} / {threshold('errorBudget')}",
            )
            for w in WINDOWS
        ),
        Recording("quire:time_to_first_token_seconds:p99", _p99("time_to_first_token_seconds")),
        Recording("quire:inter_token_latency_seconds:p99", _p99("inter_token_latency_seconds")),
        Recording("quire:request_duration_seconds:p99", _p99("request_duration_seconds")),
    ],
)
ENGINE_GROUP = Group(
    "quire-engines",
    [
        Recording(
            "quire:generation_tokens:rate5m", _rate(f"{_E}generation_tokens_total", "", "5m")
        ),
        Recording("quire:prompt_tokens:rate5m", _rate(f"{_E}prompt_tokens_total", "", "5m")),
        Recording(
            "quire:requests_waiting:mean", f"avg by ({BY_DEPLOYMENT}) ({_E}num_requests_waiting)"
        ),
        Recording("quire:prefix_hits:ratio_10m", _hit_ratio("10m")),
        Recording("quire:prefix_hits:ratio_1h", _hit_ratio("1h")),
        Recording("quire:preemptions:per_request_10m", f"{_PREEMPTIONS} / ({_FINISHED} > 0)"),
        Recording("quire:replica_load:requests", _LOAD),
        Recording(
            "quire:replica_load:skew",
            f"max by ({BY_DEPLOYMENT}) (quire:replica_load:requests)"
            f" / (avg by ({BY_DEPLOYMENT}) (quire:replica_load:requests) > 0)",
        ),
    ],
)
RECORDING_GROUPS = (THRESHOLD_GROUP, REQUEST_GROUP, ENGINE_GROUP)
