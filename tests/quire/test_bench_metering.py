"""What a run came to, from steps by hand."""

import pytest

from quire.bench.metering import Run, metered, summarize_runs
from quire.offline import OfflineEngine
from quire_engine.core.messages import CoreStats, Roofline, SequenceOutput, StepOutputs
from quire_engine.outputs import RequestOutput

ROOFLINE = Roofline(
    weight_bytes=1000,
    block_bytes=10,
    num_parameters=50,
    attention_width=4,
    peak_bytes_per_s=1e4,
    peak_flops=1e5,
)


class Clock:
    """Says what it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class SteppedEngine(OfflineEngine):
    """Has listeners, and nothing to run."""

    def __init__(self, clock: Clock) -> None:
        self.listeners = []
        self._clock = clock

    def step(self, took_s: float, seq_ids: list[int], *, num_prefill: int, num_blocks: int) -> None:
        """Tell of a step that brought a token to sequences."""
        self._clock.now += took_s
        stats = CoreStats(
            step_num_tokens=num_prefill or len(seq_ids),
            step_num_prefill_tokens=num_prefill,
            num_used_blocks=num_blocks,
        )
        outputs = [SequenceOutput(seq_id=seq_id, token_ids=[7]) for seq_id in seq_ids]
        for listener in self.listeners:
            listener(StepOutputs(outputs=outputs, stats=stats))


@pytest.fixture
def run() -> Run:
    """Two prompts in a step of their own each, then two steps of both and one of the second."""
    clock = Clock()
    engine = SteppedEngine(clock)
    with metered(engine, clock) as run:
        engine.step(0.5, [1], num_prefill=20, num_blocks=2)
        engine.step(0.25, [2], num_prefill=10, num_blocks=3)
        for seq_ids in ([1, 2], [1, 2], [2]):
            engine.step(0.2, seq_ids, num_prefill=0, num_blocks=10)
        clock.now += 0.05
    engine.step(9.0, [1], num_prefill=1, num_blocks=1)
    return run


def completed(num_tokens: int, num_cached: int = 0) -> RequestOutput:
    return RequestOutput(
        request_id="",
        prompt=None,
        prompt_token_ids=[0] * num_tokens,
        outputs=[],
        finished=True,
        num_cached_tokens=num_cached,
    )


def test_latencies_are_those_between_the_tokens_of_each_sequence(run: Run) -> None:
    figures = summarize_runs([run], [[]], None).to_json()

    assert figures["mean_ttft_ms"] == pytest.approx((500 + 750) / 2)
    # The first sequence waits 0.45 s and 0.2 s for its tokens, the second 0.2 s three times.
    assert figures["mean_itl_ms"] == pytest.approx((450 + 4 * 200) / 5)
    assert figures["mean_tpot_ms"] == pytest.approx((325 + 200) / 2)
    assert "roofline" not in figures


def test_shares_compare_steps_with_what_the_device_could_do(run: Run) -> None:
    outputs = [completed(20), completed(12, num_cached=2)]

    figures = summarize_runs([run], [outputs], ROOFLINE)

    use = figures.roofline
    assert use is not None
    assert use.decode_share == pytest.approx(3 * (1000 + 10 * 10) / 0.6 / 1e4)
    flops = 2 * 50 * 30 + 4 * 4 * (20**2 / 2 + (12**2 - 2**2) / 2)
    assert use.prefill_share == pytest.approx(flops / 0.75 / 1e5)
    assert use.share == pytest.approx((3300 / 1e4 + flops / 1e5) / 1.4)
    assert (
        figures.lines("guessed")[-1] == f"Roofline, all: {use.share:.1%} of 1.400 s; limits guessed"
    )


def test_runs_are_added_up(run: Run) -> None:
    once, twice = (
        summarize_runs([run] * times, [[completed(20)]] * times, ROOFLINE).roofline
        for times in (1, 2)
    )

    assert once is not None
    assert twice is not None
    assert twice.num_decode_steps == 2 * once.num_decode_steps
    assert twice.elapsed_s == pytest.approx(2 * once.elapsed_s)
    assert twice.share == pytest.approx(once.share)


def test_a_device_whose_limits_are_unknown_has_no_share(run: Run) -> None:
    unknown = Roofline(weight_bytes=1, block_bytes=1, num_parameters=1)

    assert summarize_runs([run], [[]], unknown).roofline is None


def test_a_run_of_single_tokens_has_no_time_between_them() -> None:
    clock = Clock()
    engine = SteppedEngine(clock)
    with metered(engine, clock) as run:
        engine.step(0.5, [1, 2], num_prefill=20, num_blocks=2)

    lines = summarize_runs([run], [[completed(10)] * 2], ROOFLINE).lines("guessed")

    assert [line.split(":")[0] for line in lines] == [
        "Time to first token (ms)",
        "Roofline, prefill",
        "Roofline, all",
    ]
