"""CUDA graphs of steps: a few launches in place of hundreds.

A graph is captured for some batch sizes; a step takes the next larger one and pads. The forward
pass of a decode step and the ways of sampling are graphs of their own, so that their number adds
up instead of multiplying. A step with chunks is a graph for each stretch between two attentions:
how attention is launched depends on every length, all else on the number of tokens alone.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch

from quire_engine.runner.gpu.sampler import PlainMode
from quire_engine.runner.gpu.step import GpuStep

CAPTURED_MODES: tuple[PlainMode, ...] = ("greedy", "random")


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to capture: waste is at most seven slots, or a sixteenth."""
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16), *range(544, 1025, 32)]
    sizes += range(1088, max_num_seqs, 64)
    return [*(size for size in sizes if size < max_num_seqs), max_num_seqs]


def piece_sizes(max_num_tokens: int) -> list[int]:
    """Return the numbers of tokens to capture for steps with chunks.

    Longer steps keep the GPU busy for longer than the CPU takes to launch them.
    """
    sizes = [*range(16, 129, 16), *range(160, 257, 32), *range(320, 513, 64)]
    sizes += [*range(640, 1025, 128), *range(1280, 2049, 256)]
    return [size for size in sizes if size <= max_num_tokens]


class StepGraphs:
    """Steps, captured."""

    def __init__(self, step: GpuStep) -> None:
        self._step = step
        self._sizes: list[int] = []
        self._piece_sizes: list[int] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._forward: dict[int, torch.cuda.CUDAGraph] = {}
        self._sample: dict[tuple[int, PlainMode], torch.cuda.CUDAGraph] = {}
        self._pieces: dict[int, list[torch.cuda.CUDAGraph]] = {}

    def capture(self, sizes: Collection[int], piece_sizes: Collection[int] = ()) -> None:
        """Capture decode steps of some batch sizes, and others of some numbers of tokens.

        The largest come first: the smaller ones reuse their memory.
        """
        for num_tokens in sorted(piece_sizes, reverse=True):
            self._pieces[num_tokens] = [
                self._captured(partial(self._step.piece, index, num_tokens))
                for index in range(self._step.num_pieces)
            ]
        for size in sorted(sizes, reverse=True):
            self._forward[size] = self._captured(partial(self._step.decode, size))
            for mode in CAPTURED_MODES:
                self._sample[size, mode] = self._captured(partial(self._step.sample, size, mode))
        self._sizes, self._piece_sizes = sorted(self._forward), sorted(self._pieces)

    def size_for(self, num_slots: int) -> int | None:
        """Return the batch size to pad to; None if no graph is large enough."""
        return _next(self._sizes, num_slots)

    def piece_size_for(self, num_tokens: int) -> int | None:
        """Return the number of tokens to pad to; None if no pieces are large enough."""
        return _next(self._piece_sizes, num_tokens)

    def piece(self, index: int, num_tokens: int) -> None:
        """Launch `GpuStep.piece`."""
        self._pieces[num_tokens][index].replay()

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
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`: it gives all free memory back before each of a thousand graphs.
        # Of this thread: NCCL's watchdog may ask the driver for something meanwhile.
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
        return graph


def _next(sizes: Sequence[int], wanted: int) -> int | None:
    index = bisect_left(sizes, wanted)
    return sizes[index] if index < len(sizes) else None
