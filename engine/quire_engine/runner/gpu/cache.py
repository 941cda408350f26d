"""The paged KV cache on a GPU: one allocation, one view for each layer.

Legend: L layers, B blocks, S tokens of a block, N key/value heads, D head dim.
"""

import torch

from quire_engine.kernels.gpu.rotary import CacheLayer
from quire_engine.model.spec import ModelSpec


class GpuKvCache:
    """Keys and values of all layers in blocks."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks, self.block_size, self.dtype = num_blocks, block_size, dtype
        shape = (spec.num_layers, 2, num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
        # Zeros: what no one wrote may be read under a mask, and must not be NaN.
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        self.memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        scale = torch.ones((), dtype=torch.float32, device=device)
        scales = (scale, scale) if dtype.itemsize == 1 else (None, None)
        self.layers = [
            CacheLayer(keys, values, *scales)
            for keys, values in self.memory.view(dtype).view(shape).unbind(0)
        ]
