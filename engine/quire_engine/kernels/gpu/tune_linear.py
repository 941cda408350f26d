"""Measures linears' tiles on this machine's GPU and writes the table that serving reads.

    python -m quire_engine.kernels.gpu.tune_linear MODEL_DIR... \
        --table engine/quire_engine/kernels/gpu/tiles/h200.json

MODEL_DIR holds a config.json; each linear of the model is measured with what serving fuses into
it. Products that the table has already, and that are not measured, stay as they are. Prints what
each product reaches in TB/s of its weight, beside the vendor's library.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from triton.runtime.errors import OutOfResources

from quire_engine.kernels.gpu.linear import GpuLinear
from quire_engine.kernels.gpu.linear_gemv import GemvTiles
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.quantize import Fp8Weight
from quire_engine.kernels.gpu.tables import (
    Product,
    Tiles,
    TileTable,
    default_tiles,
    shipped_table,
)
from quire_engine.model.families import read_spec
from quire_engine.model.fp8 import BLOCK, FP8

SIZES = (1, 8, 16, 32, 64, 128)
"""Most rows of x that a choice is for."""
MAX_STAGED_BYTES = 200_000
CACHE_BYTES = 200 << 20
"""Copies of a weight take more than this, so that none is found in the cache."""
MAX_ERROR = 0.1

Timer = Callable[[Callable[[], None]], float]
"""Runs something and says how many seconds the GPU took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear of a model, with what serving fuses into it."""

    name: str
    product: Product
    has_norm: bool = False
    adds: bool = False


def linears_of(folder: Path, num_parts: int, scale_dims: int) -> list[Linear]:
    """List the linears of a model's layer and its head, on each of `num_parts` GPUs."""
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    hidden, width = spec.hidden_size, spec.intermediate_size // num_parts
    heads = (spec.q_size + 2 * spec.kv_size) // num_parts

    def product(num_inputs: int, num_rows: int, *, gated: bool = False) -> Product:
        return Product(
            num_inputs=num_inputs,
            num_rows=num_rows,
            gated=gated,
            element_bytes=1 if scale_dims else 2,
            scale_dims=scale_dims,
        )

    head = Product(num_inputs=hidden, num_rows=spec.vocab_size // num_parts)
    # A part's output is summed with the others' before it meets the residual.
    adds = num_parts == 1
    return [
        Linear(name="qkv", product=product(hidden, heads), has_norm=True),
        Linear(name="out", product=product(spec.q_size // num_parts, hidden), adds=adds),
        Linear(name="gate_up", product=product(hidden, 2 * width, gated=True), has_norm=True),
        Linear(name="down", product=product(width, hidden), adds=adds),
        Linear(name="head", product=head, has_norm=True),
    ]


def candidates(product: Product, max_tokens: int, *, limit: int) -> list[Tiles]:
    """List tiles worth a measurement: the default, then a random choice, the same each time."""
    default = default_tiles(product, max_tokens)
    found = (
        _gemv_candidates(product) if max_tokens == 1 else _skinny_candidates(product, max_tokens)
    )
    others: list[Tiles] = [tiles for tiles in found if tiles != default]
    random.Random(0).shuffle(others)
    return ([default] if default is not None else []) + others[:limit]


def _gemv_candidates(product: Product) -> Iterator[Tiles]:
    widest = 1 << (product.num_inputs - 1).bit_length()
    blocks = (256, 512, 1024, 2048, 4096, 16384)
    for rows, block, warps in itertools.product((1, 2, 4, 8, 16), blocks, (2, 4, 8, 16)):
        per_thread = rows * block * (2 if product.gated else 1) // (32 * warps)
        if block <= widest and 8 <= per_thread <= 128 and product.num_inputs // block <= 32:
            yield GemvTiles(rows=rows, block=block, num_warps=warps)


def _skinny_candidates(product: Product, max_tokens: int) -> Iterator[Tiles]:
    height = max(16, max_tokens)
    depths = (128,) if product.scale_dims == 2 else (64, 128, 256)
    for columns, depth, splits, first, stages, prefetch in itertools.product(
        (16, 32, 64, 128), depths, (1, 2, 4, 7, 8), (False, True), (3, 4, 5, 6), (0, 512)
    ):
        rows = columns * (2 if product.gated else 1) + height
        staged = rows * depth * product.element_bytes * stages
        num_programs = product.num_outputs // columns * splits
        is_whole = product.num_inputs % (splits * depth) == 0 and product.num_outputs % columns == 0
        has_steps = product.num_inputs // (splits * depth) >= 4
        is_busy = num_programs >= 128 and (splits == 1 or num_programs <= 1200)
        if first and columns < 64:
            continue
        if is_whole and has_steps and is_busy and 24_000 <= staged <= MAX_STAGED_BYTES:
            yield SkinnyTiles(
                max_tokens=height,
                columns=columns,
                depth=depth,
                splits=splits,
                weight_first=first,
                prefetch=prefetch // product.element_bytes,
                num_stages=stages,
            )


class Workload:
    """Products of one linear with several weights, as serving computes them."""

    def __init__(
        self, linear: Linear, num_tokens: int, device: torch.device, *, dtype: torch.dtype
    ) -> None:
        product = linear.product
        self._linear, self._num_tokens = linear, num_tokens
        num_bytes = product.num_rows * product.num_inputs * product.element_bytes
        num_copies = max(1, CACHE_BYTES // num_bytes) if device.type == "cuda" else 1
        self.weight_bytes = num_bytes
        self._weights = [_random_weight(product, device, dtype) for _ in range(num_copies)]
        self._x = torch.randn(num_tokens, product.num_inputs, device=device).to(dtype)
        self._norm = None
        if linear.has_norm:
            weight = torch.ones(product.num_inputs, device=device, dtype=dtype)
            self._norm = Norm(weight, 1e-5)
        self._out = torch.zeros(num_tokens, product.num_outputs, device=device, dtype=dtype)

    def prepare(self, tiles: Tiles | None) -> Callable[[], None]:
        """Return what computes each weight's product once."""
        table = TileTable([(self._linear.product, self._num_tokens, tiles)])
        linears = [GpuLinear(weight, table=table) for weight in self._weights]

        def run() -> None:
            for linear in linears:
                if self._linear.adds:
                    linear.add_to(self._x, self._out)
                elif self._linear.product.gated:
                    linear.gated(self._x, self._out, norm=self._norm)
                else:
                    linear(self._x, self._out, norm=self._norm)

        return run

    def result(self, tiles: Tiles | None) -> torch.Tensor:
        """Return the first weight's product."""
        del self._weights[1:]
        self._out.zero_()
        self.prepare(tiles)()
        return self._out.float()

    @property
    def num_weights(self) -> int:
        return len(self._weights)


def _random_weight(
    product: Product, device: torch.device, dtype: torch.dtype
) -> torch.Tensor | Fp8Weight:
    shape = (product.num_rows, product.num_inputs)
    weight = torch.randn(shape, device=device, dtype=dtype)
    if not product.scale_dims:
        return weight
    scale_shape = shape[:1] if product.scale_dims == 1 else tuple(n // BLOCK for n in shape)
    return Fp8Weight(weight.to(FP8), torch.ones(scale_shape, device=device))


class Tuner:
    """Times products with many tiles until the time is up, and keeps the best."""

    def __init__(
        self,
        timer: Timer,
        say: Callable[[str], None],
        *,
        device: torch.device,
        dtype: torch.dtype,
        stop_at: float = math.inf,
    ) -> None:
        self._timer, self._say, self._stop_at = timer, say, stop_at
        self._device, self._dtype = device, dtype

    def best(self, linear: Linear, num_tokens: int, choices: Iterable[Tiles]) -> Tiles | None:
        """Return the fastest right tiles; None: the vendor's library is faster."""
        work = Workload(linear, num_tokens, self._device, dtype=self._dtype)
        library = self._timer(work.prepare(None)) / work.num_weights
        timed: list[tuple[float, Tiles]] = []
        for tiles in choices:
            if time.monotonic() > self._stop_at:
                self._say("  out of time: the rest is not measured")
                break
            try:
                timed.append((self._timer(work.prepare(tiles)) / work.num_weights, tiles))
            except OutOfResources:
                continue
        expected = work.result(None)
        rate = work.weight_bytes / 1e12
        head = f"{linear.name} x {num_tokens}: library {library * 1e6:.2f} us {rate / library:.2f}"
        for seconds, tiles in sorted(timed, key=lambda item: item[0]):
            if seconds >= library:
                break
            error = (work.result(tiles) - expected).norm() / expected.norm()
            if error < MAX_ERROR:
                self._say(f"{head} TB/s, ours {seconds * 1e6:.2f} us {rate / seconds:.2f} {tiles}")
                return tiles
            self._say(f"  WRONG by {error:.3f}: {tiles}")
        self._say(f"{head} TB/s is the best")
        return None


def graph_seconds(run: Callable[[], None], *, num_rounds: int = 5) -> float:
    """Time something inside a CUDA graph, where it runs in serving."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(num_rounds):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / num_rounds / 1e3


def compile_one(linear: Linear, num_tokens: int, tiles: Tiles) -> None:
    """Compile a kernel into the cache on disk, by running it once."""
    work = Workload(linear, num_tokens, torch.device("cuda"), dtype=torch.bfloat16)
    try:
        work.result(tiles)
    except OutOfResources:
        return
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the linears of some models and write the table."""
    options = _parser().parse_args(arguments)
    stop_at = time.monotonic() + options.seconds

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    tuner = Tuner(
        graph_seconds, say, device=torch.device("cuda"), dtype=torch.bfloat16, stop_at=stop_at
    )
    entries = {(product, size): tiles for product, size, tiles in shipped_table().entries()}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.num_processes, mp_context=context) as pool:
        for folder, size in itertools.product(options.models, options.sizes):
            for linear in linears_of(folder, options.tensor_parallel_size, options.scale_dims):
                if time.monotonic() > stop_at:
                    continue
                choices = candidates(linear.product, size, limit=options.limit)
                jobs = [pool.submit(compile_one, linear, size, tiles) for tiles in choices]
                good = [t for t, job in zip(choices, jobs, strict=True) if not job.exception()]
                entries[linear.product, size] = tuner.best(linear, size, good)
                table = TileTable([(product, n, tiles) for (product, n), tiles in entries.items()])
                options.table.write_text(table.dump())


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders with a config.json")
    parser.add_argument("--table", type=Path, required=True, help="file to write")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows")
    parser.add_argument("--seconds", type=float, default=600, help="when to stop")
    parser.add_argument("--limit", type=int, default=32, help="tiles to measure for each product")
    parser.add_argument("--num-processes", type=int, default=12, help="compilers at a time")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="GPUs of the model")
    parser.add_argument(
        "--scale-dims", type=int, choices=(0, 1, 2), default=0, help="0: bf16; 1: fp8; 2: blocks"
    )
    return parser


if __name__ == "__main__":
    main()
