"""The choice of a replica: pure functions of a snapshot.

The cost of a replica is the predicted time to first token there, plus what serving there costs the
others, in seconds:

    work   = uncached tokens, weighted for attention over the whole prompt
    ttft   = (queued + work) / prefill_rate * (1 + decode drag * active) + wait for a seat
    cost   = ttft + externality * work / prefill_rate * active + KV barrier

Cache and load trade continuously: no threshold decides between them, so a hot prefix spreads to a
second replica as soon as the queue before the first is longer than computing it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CostWeights:
    """Exchange rates between the terms of a replica's cost."""

    externality: float = 0.1
    """Share of our prefill time that each active request of the replica loses."""
    attention: float = 2e-5
    """Extra work of a token per token of context before it: attention against the linear layers."""
    decode_drag: float = 0.001
    """How much each active request slows prefill, as a share."""
    kv_barrier_s: float = 0.02
    """Cost of a half-full KV cache; grows without limit as the cache fills."""
    tolerance: float = 0.05
    """Costs that differ by less than this share count as equal: they are estimates."""


DEFAULT_WEIGHTS = CostWeights()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica as the decision sees it."""

    name: str
    cached_tokens: int = 0
    """Leading prompt tokens in its prefix cache."""
    queued_tokens: float = 0.0
    """Prompt tokens that it must compute before it gets to ours."""
    num_active: int = 0
    """Requests running or waiting there."""
    prefill_rate: float = 8000.0
    """Prompt tokens per second; more than 0."""
    block_size: int = 16
    num_used_blocks: int = 0
    num_total_blocks: int = 0
    """0: unknown."""
    max_active: int = 0
    """Requests that can run at once; 0: unknown."""
    seat_release_s: float = 0.0
    """Expected seconds until one of its running requests ends, when all seats are taken."""
    last_chosen: int = 0
    """Number of the decision that chose it last."""


def predicted_cost(
    candidate: Candidate, prompt_tokens: int, weights: CostWeights = DEFAULT_WEIGHTS
) -> float:
    """Return the cost in seconds of sending a prompt there; monotone in load and uncached part."""
    # Even a fully cached prompt has its last token computed.
    uncached = max(1, prompt_tokens - candidate.cached_tokens)
    work = uncached * (1 + weights.attention * max(0.0, prompt_tokens - uncached / 2))
    work_s = work / candidate.prefill_rate
    active = candidate.num_active
    ttft = (candidate.queued_tokens / candidate.prefill_rate + work_s) * (
        1 + weights.decode_drag * active
    ) + _seat_wait_s(candidate)
    externality = weights.externality * work_s * active
    return ttft + externality + weights.kv_barrier_s * _kv_pressure(candidate, uncached)


def choose_replica(
    candidates: Sequence[Candidate], prompt_tokens: int, weights: CostWeights = DEFAULT_WEIGHTS
) -> Candidate:
    """Return the candidate of the least cost.

    Among those that cost about the same, the one with the most cached wins, which has the least
    work; then the one with the fewest active requests, then the one chosen least recently, then
    the smallest name: equal idle replicas take turns.
    """
    if not candidates:
        raise ValueError("choose_replica needs at least one candidate")
    costs = [predicted_cost(candidate, prompt_tokens, weights) for candidate in candidates]
    tied = as_cheap_as_any(candidates, costs, weights)
    most = max(item.cached_tokens for item in tied)
    return least_requests([item for item in tied if item.cached_tokens == most])


def as_cheap_as_any(
    candidates: Sequence[Candidate], costs: Sequence[float], weights: CostWeights = DEFAULT_WEIGHTS
) -> list[Candidate]:
    """Return the candidates whose costs count as the smallest."""
    limit = min(costs) * (1 + weights.tolerance)
    return [item for item, cost in zip(candidates, costs, strict=True) if cost <= limit]


def least_requests(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest active requests, blind to prefixes and to lengths."""
    return min(candidates, key=lambda item: (item.num_active, item.last_chosen, item.name))


def prefill_rates(
    kinds: Sequence[str], measured: Sequence[float], *, default: float
) -> list[float]:
    """Return the rate to assume for each replica, in tokens per second; 0 is not measured.

    Replicas of one kind of hardware share the median of their measurements. One by one these say
    more about the prompts seen than about the engine: short, cached and very first prompts all
    measure low, and a replica that looks slow would never get the prompt that proves it wrong. One
    that is slow indeed shows it in its queue.
    """
    by_kind: dict[str, list[float]] = {}
    for kind, rate in zip(kinds, measured, strict=True):
        if rate > 0:
            by_kind.setdefault(kind, []).append(rate)
    typical = {kind: sorted(rates)[len(rates) // 2] for kind, rates in by_kind.items()}
    return [typical.get(kind, default) for kind in kinds]


def _seat_wait_s(candidate: Candidate) -> float:
    if not candidate.max_active:
        return 0.0
    return max(0, candidate.num_active + 1 - candidate.max_active) * candidate.seat_release_s


def _kv_pressure(candidate: Candidate, uncached: int) -> float:
    if not candidate.num_total_blocks:
        return 0.0
    needed = candidate.num_used_blocks - (-uncached // candidate.block_size)
    usage = needed / candidate.num_total_blocks
    if usage < 0.99:
        return usage / (1 - usage)
    # The tangent at 0.99 from there on: 1 / (1 - 0.99) ** 2 is its slope.
    return 99.0 + (usage - 0.99) * 1e4
