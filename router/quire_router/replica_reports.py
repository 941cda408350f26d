"""What `/v1/replicas` tells of the replicas, and of where the last requests went.

These classes are the JSON that clients get, field by field. Nothing in them is a prompt, an answer,
a key or the id of a request.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The last minutes of one replica, oldest first, one value every `interval_s`."""

    interval_s: float
    tokens_per_s: list[float]
    waiting: list[int]
    kv_usage: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """One replica now."""

    replica: str
    """Its address."""
    state: str
    retired: bool
    """It gets nothing new and goes when it is idle."""
    breaker: str
    """open: it failed too often, requests are kept away; else closed."""
    index_mode: str
    index_blocks: int
    """Blocks that this router believes cached there."""
    index_age_s: float | None
    """Since the last word about its cache; None before there was any."""
    model: str
    device: str
    running: int
    waiting: int
    in_flight: int
    """Requests of this router there; running and waiting are those of all routers."""
    queued_tokens: int
    """Prompt tokens to be computed before a new prompt's turn, as decisions see it."""
    kv_usage: float
    """Share of its KV blocks that live requests use."""
    kv_blocks: int
    tokens_per_s: float
    """Generated during the last second."""
    prefill_tokens_per_s: float
    """As the engine measured it; 0 before it has."""
    decode_step_s: float
    requests: int
    """Sent there by this router, retries included."""
    prompt_tokens: int
    cached_tokens: int
    """Of `prompt_tokens`, those that the replica found cached."""
    expected_cached_tokens: int
    """Of `prompt_tokens`, those that decisions expected to be cached."""
    preemptions: int
    failures: dict[str, int]
    """Requests that it did not serve, by reason; reasons without any are left out."""
    connections: int
    history: History | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """One replica as a decision saw it."""

    replica: str
    cost_s: float
    cached_tokens: int
    queued_tokens: int
    active: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReport:
    """One request sent to one replica; sent again after a failure, it is another one."""

    number: int
    at: float
    """Unix time of the decision."""
    replica: str
    reason: str
    """What decided: only, cost, cached, active, turn (`decisions.Reason`)."""
    attempt: int
    waited_s: float
    """Until some replica could take it."""
    prompt_tokens: int
    expected_cached_tokens: int
    cached_tokens: int | None
    completion_tokens: int | None
    first_response_s: float | None
    total_s: float | None
    outcome: str
    """running, done, cancelled; or how the replica failed it (`failure.Verdict`)."""
    num_candidates: int
    candidates: list[CandidateReport]
    """The cheapest ones and the chosen one, by cost."""
