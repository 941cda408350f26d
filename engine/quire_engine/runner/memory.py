"""The cache's memory and the limits that follow from it.

Legend: N key/value heads, D head dim, S slots.
"""

import logging
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.model.spec import ModelSpec

logger = logging.getLogger(__name__)

DEFAULT_CPU_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a configuration comes to on one device with one model."""

    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_batched_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.num_blocks * self.block_size


class KvCache:
    """Keys and values of all layers in blocks; memory is touched only when it is written.

    One block of one layer holds block_size keys (and as many values) per head, head after head,
    so that a head's keys of a block are contiguous. Keys of all blocks come first, then values.
    """

    def __init__(
        self, spec: ModelSpec, *, num_blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        self.num_blocks, self.block_size, self.dtype = num_blocks, block_size, dtype
        lines, width = 2 * num_blocks * spec.num_kv_heads, block_size * spec.head_dim
        self.by_block = [_zeros((lines, width), dtype) for _ in spec.layers]
        """Per layer (2 * blocks * N, block_size * D): line (kind * blocks + block) * N + head."""
        self.by_slot = [layer.view(-1, spec.head_dim) for layer in self.by_block]
        """The same memory as (2 * blocks * N * block_size, D)."""


def _zeros(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros without touching them: numpy maps fresh pages, torch would write them."""
    return (
        torch.from_numpy(np.zeros(prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
    )


def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Return the size of one block in all layers."""
    return 2 * spec.num_layers * block_size * spec.kv_size * dtype.itemsize


def resolve_limits(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype) -> Limits:
    """Size the cache on a CPU and settle the limits that the configuration leaves open.

    Raises:
        ConfigError: a limit is given that the model or the cache cannot hold.
    """
    size = config.cache.block_size
    num_blocks = config.cache.num_gpu_blocks_override
    if num_blocks is None:
        budget = config.cache.kv_cache_memory_bytes or DEFAULT_CPU_CACHE_BYTES
        num_blocks = budget // block_bytes(spec, size, dtype)
        if num_blocks < 1:
            raise ConfigError(
                f"kv_cache_memory_bytes={budget} does not hold one block, which takes "
                f"{block_bytes(spec, size, dtype)} bytes"
            )
    return Limits(
        num_blocks=num_blocks,
        block_size=size,
        max_model_len=resolve_max_model_len(config, spec, num_blocks),
        max_num_batched_tokens=config.scheduler.token_budget("cpu"),
    )


def resolve_max_model_len(config: EngineConfig, spec: ModelSpec, num_blocks: int) -> int:
    """Return the longest sequence: as configured, or the model's, or what the cache holds.

    Raises:
        ConfigError: what is configured is more than the model or the cache can do.
    """
    wanted, room = config.model.max_model_len, num_blocks * config.cache.block_size
    if wanted is None:
        if spec.max_position > room:
            logger.warning(
                "max_model_len reduced to what the cache holds from=%d to=%d num_blocks=%d",
                spec.max_position,
                room,
                num_blocks,
            )
        return min(spec.max_position, room)
    if wanted > spec.max_position:
        raise ConfigError(
            f"max_model_len={wanted} is more than the model's {spec.max_position} tokens"
        )
    if wanted > room:
        raise ConfigError(
            f"max_model_len={wanted} does not fit: the cache holds {room} tokens "
            f"({num_blocks} blocks of {config.cache.block_size}); raise kv_cache_memory_bytes"
        )
    return wanted
