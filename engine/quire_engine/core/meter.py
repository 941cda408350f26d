"""Measures steps: how long they take and how fast prompts are computed."""

from quire_engine.core.messages import CoreStats

WEIGHT = 0.1
"""Of the newest step in a moving average: about the last ten steps count."""


class StepMeter:
    """Moving averages over steps, written into CoreStats."""

    def __init__(self) -> None:
        self._prefill_tokens = 0.0
        self._prefill_s = 0.0

    def record(
        self, stats: CoreStats, *, step_s: float, num_tokens: int, num_prefill_tokens: int
    ) -> None:
        """Account for one step."""
        stats.num_steps += 1
        stats.step_s = step_s
        stats.step_num_tokens = num_tokens
        stats.step_num_prefill_tokens = num_prefill_tokens
        stats.busy_s += step_s
        if num_prefill_tokens:
            self._record_prefill(stats, step_s, num_prefill_tokens)
        elif num_tokens:
            stats.decode_step_s = _average(stats.decode_step_s, step_s)

    def _record_prefill(self, stats: CoreStats, step_s: float, num_tokens: int) -> None:
        # A ratio of averages: a step counts by how much it computes, so that
        # the short last chunks of prompts do not drag the rate down.
        self._prefill_tokens = _average(self._prefill_tokens, num_tokens)
        self._prefill_s = _average(self._prefill_s, step_s)
        if self._prefill_s > 0.0:
            stats.prefill_tokens_per_s = self._prefill_tokens / self._prefill_s


def _average(before: float, value: float) -> float:
    return value if before == 0.0 else before + WEIGHT * (value - before)
