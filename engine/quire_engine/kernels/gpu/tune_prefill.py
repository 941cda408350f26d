"""Measures prefill attention's tiles on this GPU, and writes the table that serving reads.

    python -m quire_engine.kernels.gpu.tune_prefill --num-heads 32 --num-kv-heads 8 \
        --head-dim 128 --table engine/quire_engine/kernels/gpu/tiles/h200_attention.json

Prints the TFLOP/s that each workload reaches. What the table says of decode stays as it is:
`quire_engine.runner.gpu.tune_decode` measures it inside of steps.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from triton.runtime.errors import OutOfResources

from quire_engine.kernels.gpu.attention_tiles import (
    PREFILL_CANDIDATES,
    Heads,
    PrefillTiles,
    default_prefill_tiles,
    shipped_attention_table,
)
from quire_engine.kernels.gpu.attention_workloads import Sequences, Workload

Timer = Callable[[Callable[[], None]], float]
"""Runs something and says how many seconds the GPU took."""

KV_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
MAX_ERROR = 1e-2
MAX_CHECKED_KEYS = 10_000
"""The reference takes long, and much memory, for more keys than this in all."""

WORKLOADS = (
    Sequences(query_lens=(8192,), seq_lens=(8192,)),
    Sequences(query_lens=(1024,) * 8, seq_lens=(1024,) * 8),
    Sequences(query_lens=(4096,), seq_lens=(8192,)),
    Sequences(query_lens=(128,) * 64, seq_lens=(128,) * 64),
)

MORE_CANDIDATES = tuple(
    PrefillTiles(block_m=m, block_n=n, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in (
        (128, 64, 8, 4),
        (64, 64, 4, 3),
        (64, 128, 4, 2),
        (128, 128, 8, 2),
        (256, 64, 16, 3),
    )
)


class Tuner:
    """Times workloads with many tiles until the time is up, and keeps the best."""

    def __init__(
        self,
        heads: Heads,
        make_workload: Callable[[Sequences], Workload],
        timer: Timer,
        say: Callable[[str], None],
        *,
        stop_at: float = math.inf,
    ) -> None:
        self._heads, self._make, self._timer, self._say = heads, make_workload, timer, say
        self._stop_at = stop_at

    def tune(self, workloads: Sequence[Sequences]) -> PrefillTiles:
        """Return the tiles with the best mean over the workloads."""
        made = [self._make(sequences) for sequences in workloads]
        best, times = self._best(made)
        for workload, seconds in zip(made, times, strict=True):
            tokens, keys = workload.sequences.query_lens, workload.sequences.seq_lens
            self._say(
                f"prefill {len(tokens)} x {max(tokens)} of {max(keys)}: {seconds * 1e6:.1f} us "
                f"{workload.flops / seconds / 1e12:.0f} TFLOP/s"
            )
        self._say(f"  {best}")
        return best

    def _best(self, workloads: Sequence[Workload]) -> tuple[PrefillTiles, list[float]]:
        """Return the tiles whose times have the smallest product, and these times."""
        best = default_prefill_tiles(self._heads)
        best_times = [self._seconds(workload, best) for workload in workloads]
        for tiles in (*PREFILL_CANDIDATES, *MORE_CANDIDATES):
            if time.monotonic() > self._stop_at:
                self._say("  out of time: the rest is not measured")
                break
            try:
                times = [self._seconds(workload, tiles) for workload in workloads]
            except OutOfResources:
                continue
            if math.prod(times) < math.prod(best_times) and self._is_right(workloads, tiles):
                best, best_times = tiles, times
        return best, best_times

    def _seconds(self, workload: Workload, tiles: PrefillTiles) -> float:
        listed = workload.tile_list(tiles)
        return self._timer(lambda: workload.prefill(listed, tiles)) / workload.num_layers

    def _is_right(self, workloads: Sequence[Workload], tiles: PrefillTiles) -> bool:
        for workload in workloads:
            if sum(workload.sequences.seq_lens) > MAX_CHECKED_KEYS:
                continue
            error = workload.relative_error()
            if not error < MAX_ERROR:
                self._say(f"  WRONG by {error:.2g}: {tiles}")
                return False
        return True


def gpu_seconds(run: Callable[[], None]) -> float:
    """Return the median time of a few replays of a CUDA graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    times: list[float] = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return sorted(times)[len(times) // 2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune for one model's heads."""
    options = _parse(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device; tiles are measured on the GPU they are for\n")
        return 1
    torch.manual_seed(0)
    device, kv_dtype = torch.device("cuda"), KV_DTYPES[options.kv_dtype]
    heads = Heads(
        num_heads=options.num_heads,
        num_kv_heads=options.num_kv_heads,
        head_dim=options.head_dim,
        kv_bytes=kv_dtype.itemsize,
    )
    processors = torch.cuda.get_device_properties(device).multi_processor_count

    def make(sequences: Sequences) -> Workload:
        return Workload(sequences, heads, device, kv_dtype=kv_dtype, num_processors=processors)

    stop_at = time.monotonic() + options.seconds
    table = shipped_attention_table()
    table.put_prefill(heads, Tuner(heads, make, gpu_seconds, _say, stop_at=stop_at).tune(WORKLOADS))
    if options.table is None:
        _say(table.dump())
    else:
        options.table.write_text(table.dump())
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure prefill attention's tiles on this GPU.")
    parser.add_argument("--num-heads", type=int, default=32)
    parser.add_argument("--num-kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv-dtype", choices=sorted(KV_DTYPES), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300.0, help="stop measuring after these")
    parser.add_argument("--table", type=Path, help="file to write; printed without it")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
