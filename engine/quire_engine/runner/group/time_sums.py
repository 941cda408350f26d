"""Times sums over ranks: `python -m quire_engine.runner.group.time_sums [--ranks 2]`.

On GPUs inside a CUDA graph, as steps run them: through symmetric memory, and through NCCL. Each is
checked, too, so that this is also what to run first on a machine with several GPUs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from quire_engine.runner.group.collectives import join
from quire_engine.runner.group.group import Group
from quire_engine.runner.group.rank import Rank
from quire_engine.runner.group.wire import READY
from quire_engine.runner.group.workers import Workers

WIDTH = 4096
ROWS = (1, 8, 64, 256, 2048, 8192)
"""Tokens of a step."""
SUMS, ROUNDS = 64, 20
"""In a graph, and launches of it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print microseconds of a sum for numbers of rows of 4096 bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=max(2, torch.cuda.device_count()))
    options = parser.parse_args(arguments)
    workers = Workers(f"{measure.__module__}:measure", None, options.ranks)
    try:
        for line in measure_lines(workers):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        workers.reach(READY)
    finally:
        workers.close()
    return 0


def measure(_argument: Any, rank: Rank) -> list[str]:
    """Take part in what the first rank prints; see `WorkerSpec.build`."""
    return list(measure_lines(rank))


def measure_lines(rank: Rank) -> Iterator[str]:
    """Yield a line for each number of rows."""
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank.share.rank) if is_cuda else torch.device("cpu")
    if is_cuda:
        torch.cuda.set_device(device)
    rank.reach("context")
    group = join(rank, device)
    # What lies elsewhere than in the memory that ranks share goes through NCCL.
    shared = group.summable(ROWS[-1], WIDTH, torch.bfloat16, device)
    places = {"symmetric memory": shared, "NCCL": torch.empty_like(shared)}
    if not is_cuda:
        places = {"gloo": shared}
    for num_rows in ROWS if is_cuda else ROWS[:3]:
        took = {name: _time_us(group, rows[:num_rows]) for name, rows in places.items()}
        yield f"{num_rows:5} rows  " + "  ".join(f"{n} {us:7.1f} us" for n, us in took.items())


def _time_us(group: Group, rows: torch.Tensor) -> float:
    _check(group, rows)
    if rows.is_cuda:
        return _graph_us(lambda: group.add_up(rows))
    started_s = time.perf_counter()
    for _ in range(SUMS):
        group.add_up(rows)
    return (time.perf_counter() - started_s) / SUMS * 1e6


def _check(group: Group, rows: torch.Tensor) -> None:
    rank, size = group.share.rank, group.share.size
    rows.copy_(torch.arange(rows.numel(), device=rows.device).view_as(rows) % 8 + rank)
    group.add_up(rows)
    expected = torch.arange(rows.numel(), device=rows.device).view_as(rows) % 8 * size
    expected += size * (size - 1) // 2
    if not torch.equal(rows, expected.to(rows.dtype)):
        raise AssertionError(f"a sum of {rows.shape[0]} rows is wrong on rank {rank}")
    rows.zero_()


def _graph_us(launch: Callable[[], None]) -> float:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        launch()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(SUMS):
                launch()
        graph.replay()
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        for _ in range(ROUNDS):
            graph.replay()
        end.record()
        stream.synchronize()
    return float(start.elapsed_time(end)) / ROUNDS / SUMS * 1e3


if __name__ == "__main__":
    # As a module with a name, because workers import it.
    from quire_engine.runner.group.time_sums import main as run

    sys.exit(run())
