"""Prints what compiling ahead for a Hopper GPU left to compile. Run without TRITON_INTERPRET."""

import json
import sys
import weakref

import torch
import triton

from hopper_compiler import recorded_launches
from quire_engine.kernels.gpu.compile_ahead import compile_ahead, prepare_compiler
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.norm import add_rms_norm


def launch_some() -> list[bool]:
    """Launch three kernels, two of them three times; tell of each time if its weight is kept."""
    x, norm, out = (torch.empty(8, 256, dtype=torch.bfloat16, device="meta") for _ in range(3))
    is_kept = []
    for columns in (16, 32):
        tiles = SkinnyTiles(max_tokens=16, columns=columns, depth=64)
        for _ in range(3):
            weight = torch.empty(256, 256, dtype=torch.bfloat16, device="meta")
            skinny(x, weight, out, tiles)
            reference = weakref.ref(weight)
            del weight
            is_kept.append(reference() is not None)
    add_rms_norm(x, None, norm[0], 1e-5, out)
    return is_kept


def main() -> None:
    compiled: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **kernel: compiled.append(kernel["fn"].name)
    loaded: list[str] = []
    triton.knobs.runtime.kernel_load_end_hook = lambda _module, _function, name, *_: loaded.append(
        name
    )
    is_kept: list[bool] = []
    with recorded_launches() as launches:
        prepare_compiler(torch.device("meta"))
        compiled.clear()
        num_kernels = compile_ahead(lambda: is_kept.extend(launch_some()), torch.device("meta"))
        ahead, loaded_ahead = len(compiled), len(loaded)
        launches.clear()
        launch_some()
    json.dump(
        {
            "num_kernels": num_kernels,
            "compiled_ahead": ahead,
            "loaded_ahead": loaded_ahead,
            "compiled_later": len(compiled) - ahead,
            "launched": len(launches),
            "kept_of_repeated": sum(is_kept[1:3] + is_kept[4:]),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
