"""What metrics, logs and traces need to know about a request in flight."""

from quire_engine.core.messages import FinishReason
from quire_engine.frontend.deltas import RequestDelta, Usage
from quire_engine.outputs import RequestStats
from quire_engine.sampling_params import RequestOutputKind, SamplingParams
from quire_engine.server.metrics import EngineMetrics, FinishedRequest
from quire_engine.server.origin import NO_ORIGIN, Origin


class RequestRecord:
    """Times and counts of one request; `time.monotonic` throughout."""

    __slots__ = (
        "_arrival_s",
        "_finish_reason",
        "_is_final_only",
        "_last_token_s",
        "_max_tokens",
        "_num_tokens",
        "origin",
        "params",
        "stats",
    )

    def __init__(
        self, params: SamplingParams, stats: RequestStats, origin: Origin = NO_ORIGIN
    ) -> None:
        """`stats` is the processor's, which keeps it up to date."""
        self.params = params
        self.stats = stats
        self.origin = origin
        self._arrival_s = stats.arrival_time
        self._max_tokens = params.max_tokens
        self._is_final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
        self._finish_reason: str = FinishReason.ABORT
        self._num_tokens = [0] * params.n
        self._last_token_s = [0.0] * params.n

    def observe(self, delta: RequestDelta, now: float, metrics: EngineMetrics) -> None:
        """Note the tokens of a step."""
        for completion in delta.completions:
            if completion.finish_reason is not None:
                self._finish_reason = completion.finish_reason
            num_new = len(completion.token_ids)
            if not num_new:
                continue
            index = completion.index
            if not self._is_final_only:
                self._observe_gap(index, num_new, now, metrics)
            self._num_tokens[index] += num_new

    def finished(self, usage: Usage | None, now: float, metrics: EngineMetrics) -> FinishedRequest:
        """Return what the request was; without usage it failed."""
        if usage is None:
            return self.ended(FinishReason.ERROR, now)
        stats = usage.stats
        if self._is_final_only:
            metrics.first_token.observe(max(stats.first_token_ts - self._arrival_s, 0.0))
        return FinishedRequest(
            finish_reason=self._finish_reason,
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_generation_tokens=stats.num_generation_tokens,
            max_num_generation_tokens=max(self._num_tokens),
            num_completions=len(self._num_tokens),
            max_tokens=self._max_tokens,
            num_preemptions=stats.num_preemptions,
            latency_s=now - self._arrival_s,
            queue_s=max(stats.scheduled_ts - stats.arrival_time, 0.0),
            prefill_s=max(stats.first_token_ts - stats.scheduled_ts, 0.0),
            decode_s=max(stats.last_token_ts - stats.first_token_ts, 0.0),
        )

    def ended(self, reason: FinishReason, now: float) -> FinishedRequest:
        """Return what the request was when it ended early."""
        return FinishedRequest(
            finish_reason=reason,
            num_generation_tokens=sum(self._num_tokens),
            max_num_generation_tokens=max(self._num_tokens),
            num_completions=len(self._num_tokens),
            max_tokens=self._max_tokens,
            latency_s=now - self._arrival_s,
        )

    def _observe_gap(self, index: int, num_new: int, now: float, metrics: EngineMetrics) -> None:
        last = self._last_token_s[index]
        if last:
            metrics.inter_token.observe((now - last) / num_new, num_new)
        elif not any(self._last_token_s):
            metrics.first_token.observe(now - self._arrival_s)
        self._last_token_s[index] = now
