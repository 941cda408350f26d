"""What the tests of the core share: cores on a verifying runner, sequences, and how to run them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from quire_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import FinishReason, KvEvents, NewSequence, SequenceOutput
from quire_engine.runner.plan import ModelRunner
from quire_engine.sampling_params import SamplingParams
from quire_engine.testing.hash_runner import HashRunner, next_token

BLOCK_SIZE = 16
VOCAB_SIZE = 50


def new_core(
    *,
    num_blocks: int = 64,
    max_model_len: int = 1024,
    budget: int = 256,
    eos: Iterable[int] = (),
    caching: bool = True,
    overlaps: bool = False,
    runner: ModelRunner | None = None,
    **scheduler: Any,
) -> EngineCore:
    return EngineCore(
        EngineConfig(
            cache=CacheConfig(enable_prefix_caching=caching),
            scheduler=SchedulerConfig(**{"watermark": 0.0} | scheduler),
        ),
        runner
        or HashRunner(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            max_num_batched_tokens=budget,
            max_num_in_flight=2 if overlaps else 1,
        ),
        prefix_model="test",
        eos_token_ids=frozenset(eos),
    )


def new_sequence(
    seq_id: int,
    prompt: list[int],
    *,
    priority: int = 0,
    arrival_s: float | None = None,
    cache_salt: str = "",
    **params: Any,
) -> NewSequence:
    return NewSequence(
        seq_id=seq_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**{"max_tokens": 4} | params),
        priority=priority,
        arrival_s=float(seq_id) if arrival_s is None else arrival_s,
        cache_salt=cache_salt,
    )


def tokens(num_tokens: int, first: int = 0) -> list[int]:
    """Return so many tokens, none like the ones that another `first` (times 1000) gives."""
    return [first * 1000 + i for i in range(num_tokens)]


def expected_tokens(
    new: NewSequence, *, eos: Iterable[int] = (), max_model_len: int = 1024
) -> list[int]:
    """Return what any correct engine generates with HashRunner: a function of the prompt alone."""
    token_ids, params = list(new.prompt_token_ids), new.params
    limit = min(max_model_len, len(token_ids) + (params.max_tokens or max_model_len))
    while len(token_ids) < limit:
        token_ids.append(next_token(token_ids, VOCAB_SIZE))
        num_generated = len(token_ids) - len(new.prompt_token_ids)
        is_end = token_ids[-1] in (params.stop_token_ids or ()) or (
            token_ids[-1] in eos and not params.ignore_eos
        )
        if is_end and num_generated >= params.min_tokens:
            break
    return token_ids[len(new.prompt_token_ids) :]


@dataclass
class Heard:
    """What a frontend heard of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    outputs: list[SequenceOutput] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    first_token_step: int = 0
    last_token_step: int = 0

    def hear(self, output: SequenceOutput, step: int) -> None:
        assert self.finish_reason is None, f"{output.seq_id} goes on after its end"
        self.outputs.append(output)
        self.token_ids += output.token_ids
        self.finish_reason = output.finish_reason
        self.first_token_step = self.first_token_step or step
        self.last_token_step = step


class Listener:
    """Steps a core, checks its invariants after each step, and remembers what it says."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.heard: dict[int, Heard] = {}
        self.num_steps = 0
        self.hashes = core._cache.pool.cached_hashes
        """Cached hashes, as events tell."""

    def step(self) -> list[SequenceOutput]:
        step = self.core.step()
        self.num_steps += 1
        for output in step.outputs:
            self.heard.setdefault(output.seq_id, Heard()).hear(output, self.num_steps)
        apply_events(self.hashes, step.kv_events)
        assert self.hashes == self.core._cache.pool.cached_hashes
        self.core.check()
        return step.outputs

    def run(self, *, max_steps: int = 1000) -> dict[int, Heard]:
        for _ in range(max_steps):
            if not self.core.has_work:
                assert self.core.stats.num_used_blocks == 0
                return self.heard
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")


def run(core: EngineCore, *sequences: NewSequence, max_steps: int = 1000) -> dict[int, Heard]:
    """Add sequences, run them to their ends, and return what was heard of each."""
    for new in sequences:
        core.add(new)
    return Listener(core).run(max_steps=max_steps)


def apply_events(hashes: set[int], events: KvEvents | None) -> None:
    """Do what a subscriber does: cleared, then stored, then removed."""
    if events is None:
        return
    if events.cleared:
        hashes.clear()
    for _, stored in events.stored:
        assert not hashes & set(stored), "stored twice"
        hashes.update(stored)
    assert hashes >= set(events.removed), "removed what was not there"
    hashes -= set(events.removed)
