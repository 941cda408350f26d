"""Random weights, for measuring and testing without a checkpoint."""

from collections.abc import Iterator

import torch

from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import parameters

SPREAD = 0.02
"""Weights are uniform in +-SPREAD around 0; norms around 1."""

POOL = 1 << 20
"""Random numbers that are drawn; tensors repeat them, since drawing billions takes minutes."""


def make_dummy(
    spec: ModelSpec, dtype: torch.dtype, seed: int, device: torch.device | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every checkpoint tensor of a model, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    # An odd length, so that rows of a power-of-two width all differ.
    pool = torch.empty(POOL + 1).uniform_(-SPREAD, SPREAD, generator=generator).to(device, dtype)
    offset = 0
    for parameter in parameters(spec):
        for source in parameter.sources:
            shape = (source.num_rows, *parameter.row_shape)
            tensor = _take(pool, offset, shape)
            offset += tensor.numel()
            is_norm = not parameter.row_shape and source.name.endswith(".weight")
            yield source.name, tensor + 1 if is_norm else tensor


def _take(pool: torch.Tensor, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
    numel = torch.Size(shape).numel()
    start = offset % pool.numel()
    num_copies = -(-(start + numel) // pool.numel())
    return pool.repeat(num_copies)[start : start + numel].view(shape)
