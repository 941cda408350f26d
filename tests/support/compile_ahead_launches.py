"""Prints what compiling ahead for a Hopper GPU left to compile. Run without TRITON_INTERPRET."""

import json
import sys

import torch
import triton

from hopper_compiler import recorded_launches
from quire_engine.kernels.gpu.compile_ahead import compile_ahead
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.norm import add_rms_norm


def launch_some() -> None:
    x, weight, out = (torch.empty(8, 256, dtype=torch.bfloat16, device="meta") for _ in range(3))
    for columns in (16, 32):
        tiles = SkinnyTiles(max_tokens=16, columns=columns, depth=64)
        for _ in range(3):
            skinny(x, torch.empty(256, 256, dtype=torch.bfloat16, device="meta"), out, tiles)
    add_rms_norm(x, None, weight[0], 1e-5, out)


def main() -> None:
    compiled: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **kernel: compiled.append(kernel["fn"].name)
    loaded: list[str] = []
    triton.knobs.runtime.kernel_load_end_hook = lambda _module, _function, name, *_: loaded.append(
        name
    )
    with recorded_launches() as launches:
        num_kernels = compile_ahead(launch_some, torch.device("meta"))
        ahead, loaded_ahead = len(compiled), len(loaded)
        launch_some()
    json.dump(
        {
            "num_kernels": num_kernels,
            "compiled_ahead": ahead,
            "loaded_ahead": loaded_ahead,
            "compiled_later": len(compiled) - ahead,
            "launched": len(launches) - num_kernels,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
