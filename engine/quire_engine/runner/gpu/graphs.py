"""CUDA graphs of decode steps: one launch in place of hundreds.

A graph is captured for some batch sizes; a step takes the next larger one and pads. The forward
pass and the ways of sampling are graphs of their own, so that their number adds up instead of
multiplying.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial

import torch

from quire_engine.runner.gpu.sampler import PlainMode
from quire_engine.runner.gpu.step import GpuStep

CAPTURED_MODES: tuple[PlainMode, ...] = ("greedy", "random")


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to capture: waste is at most seven slots, or a sixteenth."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, 1025, 32)]
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


class StepGraphs:
    """Decode steps, captured."""

    def __init__(self, step: GpuStep, sizes: Sequence[int]) -> None:
        self._step, self._sizes = step, sorted(sizes)
        self._pool = torch.cuda.graph_pool_handle()
        self._forward: dict[int, torch.cuda.CUDAGraph] = {}
        self._sample: dict[tuple[int, PlainMode], torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """Capture every size, the largest first: the smaller ones reuse its memory."""
        for size in reversed(self._sizes):
            self._forward[size] = self._captured(partial(self._step.decode, size))
            for mode in CAPTURED_MODES:
                self._sample[size, mode] = self._captured(partial(self._step.sample, size, mode))

    def size_for(self, num_slots: int) -> int | None:
        """Return the batch size to pad to; None if no graph is large enough."""
        index = bisect_left(self._sizes, num_slots)
        return self._sizes[index] if index < len(self._sizes) else None

    def decode(self, size: int) -> None:
        """Launch `GpuStep.decode`."""
        self._forward[size].replay()

    def sample(self, size: int, mode: PlainMode) -> None:
        """Launch `GpuStep.sample`."""
        graph = self._sample.get((size, mode))
        if graph is None:
            self._step.sample(size, mode)
        else:
            graph.replay()

    def _captured(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        launch()  # compiles what is not compiled yet, which a capture may not
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # Of this thread: NCCL's watchdog may ask the driver for something meanwhile.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            launch()
        return graph
