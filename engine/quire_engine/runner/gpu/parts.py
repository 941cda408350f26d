"""The parts of a GPU runner, built around one cache."""

from collections.abc import Collection
from dataclasses import dataclass

from quire_engine.config import EngineConfig
from quire_engine.runner.gpu.attention import GpuAttention
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.decoder import GpuDecoder
from quire_engine.runner.gpu.rows import Rows
from quire_engine.runner.gpu.sampler import GpuSampler
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.gpu.step import GpuStep
from quire_engine.runner.gpu.step_inputs import StepInputs
from quire_engine.runner.memory import Limits

BYTES_PER_TOKEN = 16
"""Staged for each token of a step at most: its id, its block, its share of attention's tiles."""
BYTES_PER_SEQUENCE = 1024
"""Staged for each sequence: sampling parameters, segments, slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuParts:
    """Everything between a plan and its launches."""

    decoder: GpuDecoder
    rows: Rows
    staging: Staging
    inputs: StepInputs
    attention: GpuAttention
    sampler: GpuSampler
    step: GpuStep

    @classmethod
    def build(
        cls,
        config: EngineConfig,
        decoder: GpuDecoder,
        cache: GpuKvCache,
        limits: Limits,
        *,
        eos_token_ids: Collection[int],
    ) -> "GpuParts":
        """Build the parts for one cache; the decoder may serve several, one after the other."""
        spec, device = decoder.spec, decoder.device
        max_num_seqs = min(config.scheduler.max_num_seqs, limits.max_num_batched_tokens)
        rows = Rows(
            max_num_seqs=max_num_seqs,
            max_model_len=limits.max_model_len,
            block_size=config.cache.block_size,
            device=device,
        )
        staging = Staging(_staging_bytes(max_num_seqs, limits), device)
        inputs = StepInputs(
            rows,
            staging,
            max_num_seqs=max_num_seqs,
            max_num_tokens=limits.max_num_batched_tokens,
        )
        attention = GpuAttention(
            spec,
            inputs,
            rows.block_table_RM,
            cache,
            max_num_tokens=limits.max_num_batched_tokens,
            batch_invariant=config.device.batch_invariant,
        )
        sampler = GpuSampler(
            max_num_rows=max_num_seqs + 1,
            vocab_size=spec.vocab_size,
            device=device,
            eos_token_ids=eos_token_ids,
            seed=config.model.seed,
        )
        return cls(
            decoder=decoder,
            rows=rows,
            staging=staging,
            inputs=inputs,
            attention=attention,
            sampler=sampler,
            step=GpuStep(decoder, cache, attention, sampler, inputs, rows),
        )


def _staging_bytes(max_num_seqs: int, limits: Limits) -> int:
    """Return the most that a step stages: every sequence new, with as much prompt as can be."""
    # A sequence that is admitted brings all its tokens, not only those of its first step.
    num_tokens = max_num_seqs * (limits.max_model_len + 1)
    longest_step = min(num_tokens, limits.num_tokens + limits.max_model_len)
    return (
        longest_step * BYTES_PER_TOKEN
        + max_num_seqs * BYTES_PER_SEQUENCE
        + limits.max_num_batched_tokens * BYTES_PER_TOKEN
        + (1 << 20)
    )
