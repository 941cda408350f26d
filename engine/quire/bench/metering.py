"""What a run in this process came to: when tokens came, and how near the device was to its limits.

A run is metered step by step, as the core tells of them, so it costs next to nothing:

    with metered(llm.llm_engine) as run:
        outputs = llm.generate(...)
    figures = summarize_runs([run], [outputs], roofline)
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from quire.bench.statistics import Distribution, distribution
from quire.offline import OfflineEngine
from quire_engine.core.messages import CoreStats, Roofline, StepOutputs
from quire_engine.outputs import RequestOutput

PERCENTILES = (50.0, 90.0, 99.0)
TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as far as figures need it."""

    took_s: float
    stats: CoreStats
    at: float
    seq_ids: Sequence[int]
    """Sequences that got a token."""


@dataclass(slots=True)
class Run:
    """All steps between two moments."""

    clock: Callable[[], float]
    started_at: float = 0.0
    ended_at: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def hear(self, outputs: StepOutputs) -> None:
        """Take note of a step."""
        now = self.clock()
        before = self.steps[-1].at if self.steps else self.started_at
        seq_ids = [output.seq_id for output in outputs.outputs if output.token_ids]
        self.steps.append(Step(now - before, outputs.stats, now, seq_ids))

    @property
    def elapsed_s(self) -> float:
        return self.ended_at - self.started_at

    @property
    def token_times(self) -> dict[int, list[float]]:
        """Seconds from the start to each token, by sequence."""
        times: dict[int, list[float]] = {}
        for step in self.steps:
            for seq_id in step.seq_ids:
                times.setdefault(seq_id, []).append(step.at - self.started_at)
        return times


@contextmanager
def metered(engine: OfflineEngine, clock: Callable[[], float] = time.perf_counter) -> Iterator[Run]:
    """Meter what the engine does inside."""
    run = Run(clock, started_at=clock())
    engine.listeners.append(run.hear)
    try:
        yield run
    finally:
        engine.listeners.remove(run.hear)
        run.ended_at = clock()


@dataclass(slots=True, kw_only=True)
class RooflineUse:
    """How much of what a device could do was done, by what bounds a step."""

    peak_bytes_per_s: float
    peak_flops: float
    decode_bytes: float = 0.0
    """Read by steps that only decode: weights, and the blocks in use."""
    decode_s: float = 0.0
    num_decode_steps: int = 0
    prefill_flops: float = 0.0
    """Done by steps that prefill, for their decodes too."""
    prefill_s: float = 0.0
    num_prefill_steps: int = 0
    elapsed_s: float = 0.0

    @property
    def decode_share(self) -> float:
        """Share of the memory's bandwidth."""
        return self.decode_bytes / max(self.decode_s, 1e-9) / self.peak_bytes_per_s

    @property
    def prefill_share(self) -> float:
        """Share of the arithmetic."""
        return self.prefill_flops / max(self.prefill_s, 1e-9) / self.peak_flops

    @property
    def share(self) -> float:
        """Share of the whole time that a device at its limits would have taken."""
        ideal_s = self.decode_bytes / self.peak_bytes_per_s + self.prefill_flops / self.peak_flops
        return ideal_s / max(self.elapsed_s, 1e-9)

    def add(self, step: Step, roofline: Roofline) -> None:
        """Account for one step."""
        if step.stats.step_num_prefill_tokens:
            self.prefill_flops += roofline.flops(step.stats.step_num_tokens)
            self.prefill_s += step.took_s
            self.num_prefill_steps += 1
        else:
            self.decode_bytes += roofline.bytes_read(step.stats.num_used_blocks)
            self.decode_s += step.took_s
            self.num_decode_steps += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What is printed of runs, and kept."""

    latencies: Mapping[str, Distribution]
    """By short name: ttft, tpot, itl."""
    roofline: RooflineUse | None
    """None where the device's limits are not known."""

    def lines(self, source: str) -> list[str]:
        """Return what to print; `source` says where the device's limits come from."""
        lines = [
            f"{TITLES[name]} (ms): mean {spread.mean_ms:.2f}"
            + "".join(f", P{percent:.0f} {value:.2f}" for percent, value in spread.percentiles_ms)
            for name, spread in self.latencies.items()
        ]
        return lines if self.roofline is None else [*lines, *_roofline_lines(self.roofline, source)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name; latencies in ms, shares of 1."""
        found: dict[str, Any] = {}
        for name, spread in self.latencies.items():
            found[f"mean_{name}_ms"] = spread.mean_ms
            found |= {f"p{percent:.0f}_{name}_ms": ms for percent, ms in spread.percentiles_ms}
        if (use := self.roofline) is not None:
            shares = {
                "decode_share": use.decode_share,
                "prefill_share": use.prefill_share,
                "share": use.share,
            }
            found["roofline"] = {**shares, **asdict(use)}
        return found


def summarize_runs(
    runs: Sequence[Run],
    outputs: Sequence[Sequence[RequestOutput]],
    roofline: Roofline | None,
) -> RunFigures:
    """Return the figures of runs, with what came of each."""
    times = [times for run in runs for times in run.token_times.values()]
    samples = {
        "ttft": [first for first, *_ in times],
        "tpot": [(one[-1] - one[0]) / (len(one) - 1) for one in times if len(one) > 1],
        "itl": [after - before for one in times for before, after in itertools.pairwise(one)],
    }
    latencies = {name: distribution(found, PERCENTILES) for name, found in samples.items() if found}
    if roofline is None or not (roofline.peak_bytes_per_s and roofline.peak_flops):
        return RunFigures(latencies=latencies, roofline=None)
    return RunFigures(latencies=latencies, roofline=_use(runs, outputs, roofline))


def _use(
    runs: Sequence[Run], outputs: Sequence[Sequence[RequestOutput]], roofline: Roofline
) -> RooflineUse:
    use = RooflineUse(peak_bytes_per_s=roofline.peak_bytes_per_s, peak_flops=roofline.peak_flops)
    for run, completed in zip(runs, outputs, strict=True):
        for step in run.steps:
            use.add(step, roofline)
        num_pairs = sum(_num_pairs(output) for output in completed)
        use.prefill_flops += roofline.flops(0, num_pairs)
        use.elapsed_s += run.elapsed_s
    return use


def _num_pairs(output: RequestOutput) -> float:
    """Return how many pairs of tokens attention compared to compute a prompt."""
    num_tokens, num_cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
    return (num_tokens**2 - num_cached**2) / 2


def _roofline_lines(use: RooflineUse, source: str) -> list[str]:
    lines = []
    if use.num_decode_steps:
        lines.append(
            f"Roofline, decode: {use.decode_share:.1%} of {_rate(use.peak_bytes_per_s)}B/s, "
            f"{use.num_decode_steps} steps in {use.decode_s:.3f} s"
        )
    if use.num_prefill_steps:
        lines.append(
            f"Roofline, prefill: {use.prefill_share:.1%} of {_rate(use.peak_flops)}FLOP/s, "
            f"{use.num_prefill_steps} steps in {use.prefill_s:.3f} s"
        )
    return [*lines, f"Roofline, all: {use.share:.1%} of {use.elapsed_s:.3f} s; limits {source}"]


def _rate(value: float) -> str:
    """Return a rate with the prefix of its unit."""
    return f"{value / 1e12:.4g} T" if value >= 1e12 else f"{value / 1e9:.4g} G"
