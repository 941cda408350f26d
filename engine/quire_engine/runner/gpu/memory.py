"""How a GPU's memory is divided, measured before the cache is sized.

A trial with a small cache runs the largest step and captures two graphs, so that what the real run
will take is known; the cache gets the rest of the share that was asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.memory import Limits, block_bytes, resolve_max_model_len

GIB = 1 << 30
SLACK_BYTES = 256 << 20
"""Kept back for what libraries allocate late: handles, and modules of kernels seldom used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What everything but the cache takes, in bytes."""

    total: int
    """Memory of the GPU."""
    others: int
    """Taken before this process loaded anything: its own context, and other processes."""
    weights: int
    activations: int
    """Peak of a step, beyond what stays."""
    rows: int
    """Tables of live sequences, logits and buffers that stay."""
    graphs: int
    group: int = 0
    """What it takes to talk to other GPUs."""

    @property
    def fixed(self) -> int:
        """All of it, with some slack."""
        own = self.weights + self.activations + self.rows + self.graphs + self.group
        return self.others + own + SLACK_BYTES

    def table(self, limits: Limits, cache_bytes: int, utilization: float) -> str:
        """Return one line for each use, then what fits."""
        uses = [
            ("weights", self.weights),
            ("KV cache", cache_bytes),
            ("activations", self.activations),
            ("tables and logits", self.rows),
            ("CUDA graphs", self.graphs),
            *([("communication", self.group)] if self.group else []),
            ("context and others", self.others),
            ("slack", SLACK_BYTES),
            ("left to others", self.total - self.fixed - cache_bytes),
            (f"total, of which {utilization:.0%} may be used", self.total),
        ]
        lines = [f"  {name:<36} {num_bytes / GIB:8.2f} GiB" for name, num_bytes in uses]
        lines.append(
            f"  {limits.num_tokens} tokens fit in {limits.num_blocks} blocks: "
            f"{limits.num_tokens / limits.max_model_len:.1f} requests of the full "
            f"{limits.max_model_len} tokens"
        )
        return "\n".join(["GPU memory:", *lines])


def cache_limits(
    config: EngineConfig,
    spec: ModelSpec,
    use: MemoryUse,
    kv_dtype: torch.dtype,
    *,
    agree: Callable[[int], int],
) -> Limits:
    """Size the cache, and settle the limits that the configuration leaves open.

    `agree` returns the least of what the ranks that share the model have room for.

    Raises:
        ConfigError: nothing is left for the cache, or a limit is more than it can hold.
    """
    size = config.cache.block_size
    per_block = block_bytes(spec, size, kv_dtype)
    num_blocks = config.cache.num_gpu_blocks_override
    if num_blocks is None:
        share = int(use.total * config.cache.gpu_memory_utilization)
        budget = config.cache.kv_cache_memory_bytes or share - use.fixed
        num_blocks = agree(budget // per_block)
        if num_blocks < 1:
            raise ConfigError(_no_room(config, use, per_block))
    return Limits(
        num_blocks=num_blocks,
        block_size=size,
        max_model_len=resolve_max_model_len(config, spec, num_blocks),
        max_num_batched_tokens=config.scheduler.token_budget("cuda"),
    )


def _no_room(config: EngineConfig, use: MemoryUse, per_block: int) -> str:
    if config.cache.kv_cache_memory_bytes:
        return (
            f"kv_cache_memory_bytes={config.cache.kv_cache_memory_bytes} does not hold one block, "
            f"which takes {per_block} bytes"
        )
    utilization = config.cache.gpu_memory_utilization
    return (
        f"no memory is left for the KV cache: weights take {use.weights / GIB:.2f} GiB, a step "
        f"{use.activations / GIB:.2f}, tables {use.rows / GIB:.2f}, graphs "
        f"{use.graphs / GIB:.2f}, and {use.others / GIB:.2f} were taken before; "
        f"gpu_memory_utilization={utilization} of {use.total / GIB:.2f} GiB allows "
        f"{utilization * use.total / GIB:.2f}. Raise it, lower max_num_batched_tokens or "
        "max_num_seqs, or use more GPUs"
    )


def used_bytes(device: torch.device) -> int:
    """Return what is taken of a GPU's memory by anyone, without what torch keeps for later."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


class Peak:
    """The most that was allocated at a time, beyond what was there before."""

    num_bytes = 0


@contextmanager
def measure_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of what runs inside."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    peak = Peak()
    yield peak
    torch.cuda.synchronize(device)
    peak.num_bytes = torch.cuda.max_memory_allocated(device) - before
