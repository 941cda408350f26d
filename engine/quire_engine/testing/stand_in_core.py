# ruff: noqa: D101, C901 - goes as soon as EngineCore is there
"""Stands in for EngineCore until that is there: no chunks, no limits, no eviction."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from quire_engine.core.messages import (
    CoreStats,
    FinishReason,
    KvEvents,
    NewSequence,
    SequenceOutput,
    StepOutputs,
)
from quire_engine.rpc.prefix import block_hashes, prefix_seed
from quire_engine.runner.plan import AdmittedSequence, StepPlan


class EngineCore:
    def __init__(
        self,
        config: Any,
        runner: Any,
        *,
        prefix_model: str,
        eos_token_ids: frozenset[int],
        max_num_batched_tokens: int,
    ) -> None:
        self.config, self.runner, self.model, self.eos = config, runner, prefix_model, eos_token_ids
        self.waiting: list[NewSequence] = []
        self.running: dict[int, tuple[NewSequence, list[int]]] = {}
        self.dropped: list[int] = []
        self.cached: set[int] = set()
        self.cleared = False
        self.stats = CoreStats(num_total_blocks=runner.num_blocks)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.dropped)

    def add(self, new: NewSequence) -> None:
        self.waiting.append(new)

    def abort(self, seq_ids: Collection[int]) -> None:
        for seq_id in seq_ids:
            self.waiting = [w for w in self.waiting if w.seq_id != seq_id]
            if self.running.pop(seq_id, None):
                self.dropped.append(seq_id)

    def reset_prefix_cache(self) -> None:
        self.cached.clear()
        self.cleared = True
        self.dropped.append(-1)

    def step(self) -> StepOutputs:
        plan = StepPlan(dropped=self.dropped)
        self.dropped = []
        events = KvEvents(cleared=self.cleared)
        self.cleared = False
        first: dict[int, int] = {}
        size = self.config.cache.block_size
        waiting, self.waiting = self.waiting, []
        stats = self.stats
        for seq in waiting:
            seed = prefix_seed(self.model, cache_salt=seq.cache_salt)
            hashes = block_hashes(seq.prompt_token_ids, size, seed)
            hits = 0
            while hits < len(hashes) and hashes[hits] in self.cached:
                hits += 1
            if new := hashes[hits:]:
                events.stored.append((hashes[hits - 1] if hits else 0, new))
            self.cached.update(new)
            n = len(seq.prompt_token_ids)
            done = min(hits * size, n - 1)
            first[seq.seq_id] = done
            self.running[seq.seq_id] = (seq, [])
            plan.admitted.append(
                AdmittedSequence(
                    seq_id=seq.seq_id,
                    token_ids=seq.prompt_token_ids,
                    num_prompt_tokens=n,
                    block_ids=[],
                    num_computed_tokens=done,
                    params=seq.params,
                )
            )
            plan.num_tokens[seq.seq_id] = n - done
            stats.num_prompt_tokens += n - done
            stats.num_prefix_hit_tokens += done
            stats.num_prefix_queried_tokens += n
        for seq_id in self.running:
            plan.num_tokens.setdefault(seq_id, 1)
        result = self.runner.execute(plan)
        outputs = []
        for seq_id, token in result.token_ids.items():
            seq, tokens = self.running[seq_id]
            tokens.append(token)
            out = SequenceOutput(seq_id=seq_id, token_ids=[token])
            if seq_id in first:
                out.num_cached_tokens = first[seq_id]
                out.scheduled_s = seq.arrival_s
                out.prompt_logprobs = result.prompt_logprobs.get(seq_id)
            if seq_id in result.logprobs:
                out.logprobs = [result.logprobs[seq_id]]
            if token in self.eos and not seq.params.ignore_eos:
                out.finish_reason = FinishReason.STOP
            elif token in (seq.params.stop_token_ids or ()):
                out.finish_reason, out.stop_token_id = FinishReason.STOP, token
            elif len(tokens) >= (seq.params.max_tokens or 10**9):
                out.finish_reason = FinishReason.LENGTH
            if out.finish_reason:
                del self.running[seq_id]
                self.dropped.append(seq_id)
            outputs.append(out)
        stats.num_generated_tokens += len(outputs)
        stats.num_steps += 1
        stats.num_running, stats.num_waiting = len(self.running), len(self.waiting)
        stats.num_used_blocks = sum(
            (len(s.prompt_token_ids) + len(t)) // size + 1 for s, t in self.running.values()
        )
        has_events = events.cleared or events.stored
        return StepOutputs(
            outputs=outputs, stats=replace(stats), kv_events=events if has_events else None
        )
