# ruff: noqa: N806
"""Launches every kind of attention kernel for a Hopper GPU, to see what the compiler makes of it.

A program of its own, because triton is not interpreted in it: prints a list in JSON.
"""

import json
import sys
from dataclasses import asdict

import torch

from hopper_compiler import recorded_launches
from quire_engine.kernels.gpu.decode_attention import decode_attention
from quire_engine.kernels.gpu.decode_attention_plan import DecodePlan
from quire_engine.kernels.gpu.prefill_attention import prefill_attention

META = torch.device("meta")
NUM_BLOCKS, BLOCK_SIZE, NUM_ROWS, MAX_BLOCKS = 100, 16, 300, 1000
NUM_TOKENS, NUM_TILES = 1000, 50


def _int32(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32, device=META)


def launch_attention(
    num_heads: int, num_kv_heads: int, head_dim: int, kv_dtype: torch.dtype, batch_size: int
) -> None:
    """Plan and run one layer of decode, and one of prefill."""
    q_THD = torch.empty(NUM_TOKENS, num_heads, head_dim, dtype=torch.bfloat16, device=META)
    cache = torch.empty(NUM_BLOCKS, BLOCK_SIZE, num_kv_heads, head_dim, dtype=kv_dtype, device=META)
    kv_scale = torch.empty((), device=META) if kv_dtype.itemsize == 1 else None
    plan = DecodePlan(
        max_batch=batch_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        device=META,
        num_processors=132,
        kv_dtype=kv_dtype,
    )
    plan.update(_int32(batch_size), _int32(batch_size))
    table_RM = _int32(NUM_ROWS, MAX_BLOCKS)
    q_BHD = q_THD[:batch_size]
    options = {"scale": head_dim**-0.5, "k_scale": kv_scale, "v_scale": kv_scale}
    decode_attention(q_BHD, cache, cache, table_RM, plan, q_BHD, **options)
    tiles_I4 = _int32(NUM_TILES, 4)
    prefill_attention(q_THD, cache, cache, table_RM, tiles_I4, q_THD, **options)


def main() -> None:
    """Print what was compiled."""
    compiled = []
    for num_heads, num_kv_heads, head_dim, kv_dtype, batch_size in (
        (32, 8, 128, torch.bfloat16, 256),
        (28, 4, 128, torch.float8_e4m3fn, 1),
    ):
        with recorded_launches() as launches:
            launch_attention(num_heads, num_kv_heads, head_dim, kv_dtype, batch_size)
        compiled += [asdict(launch) for launch in launches]
    sys.stdout.write(json.dumps(compiled))


if __name__ == "__main__":
    main()
