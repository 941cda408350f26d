from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from quire_router.policy import (
    DEFAULT_WEIGHTS,
    Candidate,
    CostWeights,
    choose_replica,
    least_requests,
    predicted_cost,
    prefill_rates,
)

candidates = st.builds(
    Candidate,
    name=st.text("abc", min_size=1, max_size=3),
    cached_tokens=st.integers(0, 10_000),
    queued_tokens=st.integers(0, 100_000),
    num_active=st.integers(0, 300),
    prefill_rate=st.floats(100, 50_000),
    num_used_blocks=st.integers(0, 1200),
    num_total_blocks=st.sampled_from([0, 1000]),
    max_active=st.sampled_from([0, 256]),
    seat_release_s=st.floats(0, 0.1),
    last_chosen=st.integers(0, 50),
)
prompts = st.integers(1, 10_000)


def rank(item: Candidate) -> tuple[int, int, int, str]:
    return -item.cached_tokens, item.num_active, item.last_chosen, item.name


def brute_force(items: Sequence[Candidate], num_tokens: int, weights: CostWeights) -> Candidate:
    def cost(item: Candidate) -> float:
        uncached = max(1, num_tokens - item.cached_tokens)
        context = max(0.0, num_tokens - uncached / 2)
        work_s = uncached * (1 + weights.attention * context) / item.prefill_rate
        drag = 1 + weights.decode_drag * item.num_active
        total = (item.queued_tokens / item.prefill_rate + work_s) * drag
        if item.max_active and item.num_active >= item.max_active:
            total += (item.num_active - item.max_active + 1) * item.seat_release_s
        total += weights.externality * work_s * item.num_active
        if item.num_total_blocks:
            blocks = item.num_used_blocks + (uncached + 15) // 16
            usage = blocks / item.num_total_blocks
            pressure = usage / (1 - usage) if usage < 0.99 else 99 + (usage - 0.99) * 10_000
            total += weights.kv_barrier_s * pressure
        return total

    cheapest = min(map(cost, items))
    best: Candidate | None = None
    for item in items:
        if cost(item) > cheapest * (1 + weights.tolerance):
            continue
        if best is None or rank(item) < rank(best):
            best = item
    assert best is not None
    return best


@given(st.lists(candidates, min_size=1, max_size=6), prompts)
def test_the_choice_equals_brute_force(items: list[Candidate], num_tokens: int) -> None:
    # Sums in another order differ in the last bits, which must not decide the comparison.
    weights = CostWeights(tolerance=0.05 + 1e-9)

    chosen = choose_replica(items, num_tokens, weights)

    expected = brute_force(items, num_tokens, CostWeights(tolerance=0.05))
    loose = brute_force(items, num_tokens, CostWeights(tolerance=0.05 + 2e-9))
    assert chosen in (expected, loose)


@given(candidates, prompts, st.integers(1, 10_000))
def test_more_cached_tokens_never_cost_more(item: Candidate, num_tokens: int, more: int) -> None:
    warmer = replace(item, cached_tokens=item.cached_tokens + more)
    assert predicted_cost(warmer, num_tokens) <= predicted_cost(item, num_tokens) * (1 + 1e-9)


@given(
    candidates,
    prompts,
    st.sampled_from(["queued_tokens", "num_active", "num_used_blocks"]),
    st.integers(1, 1000),
)
def test_more_load_never_costs_less(item: Candidate, num_tokens: int, kind: str, more: int) -> None:
    busier = replace(item, **{kind: getattr(item, kind) + more})
    assert predicted_cost(busier, num_tokens) >= predicted_cost(item, num_tokens) * (1 - 1e-9)


@given(candidates, prompts, st.integers(1, 1000))
def test_longer_prompts_never_cost_less(item: Candidate, num_tokens: int, more: int) -> None:
    assert predicted_cost(item, num_tokens + more) >= predicted_cost(item, num_tokens) * (1 - 1e-9)


@given(st.lists(candidates, min_size=1, max_size=6, unique_by=lambda c: c.name), prompts)
def test_the_order_of_candidates_does_not_matter(items: list[Candidate], num_tokens: int) -> None:
    assert choose_replica(items, num_tokens) is choose_replica(items[::-1], num_tokens)


def test_no_candidates_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one"):
        choose_replica([], 10)


def test_a_cached_prefix_attracts() -> None:
    cold, warm = Candidate("cold"), Candidate("warm", cached_tokens=4000)
    assert choose_replica([cold, warm], 4096) is warm


def test_a_long_queue_beats_a_cached_prefix() -> None:
    warm = Candidate("warm", cached_tokens=900, queued_tokens=5000)
    idle = Candidate("idle")
    assert choose_replica([warm, idle], 1000) is idle


def test_a_full_cache_repels() -> None:
    full = Candidate("full", num_used_blocks=995, num_total_blocks=1000)
    roomy = Candidate("roomy", num_used_blocks=100, num_total_blocks=1000, queued_tokens=2000)
    assert choose_replica([full, roomy], 100) is roomy


def test_taken_seats_repel_even_a_hot_prefix() -> None:
    hot = Candidate("hot", cached_tokens=4000, num_active=300, max_active=256, seat_release_s=0.02)
    cold = Candidate("cold", num_active=10, max_active=256, seat_release_s=0.02)
    assert choose_replica([hot, cold], 4100) is cold


def test_equal_idle_replicas_take_turns() -> None:
    items = [Candidate("a", prefill_rate=1000.0), Candidate("b", prefill_rate=1010.0)]
    chosen = []
    for number in range(1, 7):
        choice = choose_replica(items, 500)
        chosen.append(choice.name)
        items = [replace(c, last_chosen=number) if c is choice else c for c in items]
    assert chosen == ["a", "b", "a", "b", "a", "b"]


def test_a_hot_prefix_spreads_once_it_queues() -> None:
    items = [Candidate("hot", cached_tokens=6000), Candidate("b"), Candidate("c")]
    served = set()
    for _ in range(40):
        choice = choose_replica(items, 6200)
        served.add(choice.name)
        uncached = 6200 - choice.cached_tokens
        after = replace(
            choice,
            cached_tokens=6000,
            queued_tokens=choice.queued_tokens + uncached,
            num_active=choice.num_active + 1,
        )
        items = [after if c is choice else c for c in items]
    assert served == {"hot", "b", "c"}


def test_least_requests_sees_nothing_but_requests() -> None:
    busy = Candidate("busy", num_active=2, cached_tokens=1000)
    free = Candidate("free", num_active=1, queued_tokens=10**6)
    assert least_requests([busy, free]) is free


def test_replicas_on_the_same_hardware_share_the_median_rate() -> None:
    kinds = ["gpu", "gpu", "gpu", "cpu", "tpu"]
    rates = prefill_rates(kinds, [90.0, 5000.0, 0.0, 100.0, 0.0], default=8000.0)
    assert rates == [5000.0, 5000.0, 5000.0, 100.0, 8000.0]


def test_equal_costs_go_to_the_one_with_less_to_compute() -> None:
    hot = Candidate("hot", cached_tokens=4000, queued_tokens=4000, num_active=1)
    cold = Candidate("cold")
    assert choose_replica([cold, hot], 4010) is hot


def test_default_weights_are_the_ones_that_were_simulated() -> None:
    assert DEFAULT_WEIGHTS.externality == 0.1
