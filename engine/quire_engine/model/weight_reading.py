"""Reads safetensors files with several threads, each part straight to where it belongs.

On the CPU a part is read into the parameter itself. For a GPU it is read into pinned memory and
copied from there while the thread reads the next part. A rank reads what it needs, nothing else.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quire_engine.model.quantization import Scales
from quire_engine.model.safetensors_file import SafetensorsFile, StoredTensor, bytes_of
from quire_engine.model.weight_places import Place, WeightPlaces
from quire_engine.progress import bar

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Read at a time: small enough that all threads end together, large enough for disks."""
MAX_THREADS = 8
BUFFERS = 2
"""Per thread: one is read into while the other is copied."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a stored tensor, and where they go."""

    stored: StoredTensor
    place: Place
    rows: slice
    """Of the stored tensor."""

    @property
    def row_bytes(self) -> int:
        columns = self.place.columns
        return int(columns.stop - columns.start) * self.stored.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return int(self.rows.stop - self.rows.start) * self.row_bytes


class PartQueue:
    """Parts that nobody has begun to read."""

    def __init__(self, parts: Sequence[Part], progress: Any) -> None:
        self._parts, self._progress = deque(parts), progress
        self._lock = threading.Lock()

    def take(self) -> Part | None:
        """Return the next part; None: there are no more."""
        with self._lock:
            if not self._parts:
                return None
            part = self._parts.popleft()
            self._progress.update(part.num_bytes)
            return part

    def clear(self) -> None:
        """Forget them, because reading one has failed."""
        with self._lock:
            self._parts.clear()


class Lane:
    """One thread's way from files to places."""

    def __init__(self, device: torch.device, buffer_bytes: int) -> None:
        self._device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._buffer_bytes = buffer_bytes
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(BUFFERS)]
        self._copied = [
            torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
            for _ in range(BUFFERS)
        ]
        self._turn = 0
        self.read_s = 0.0
        self.place_s = 0.0

    def run(self, parts: PartQueue) -> None:
        """Read parts until there are none."""
        try:
            # Both are states of a thread, not of the process.
            with torch.inference_mode(), self._on_device():
                while (part := parts.take()) is not None:
                    self._move(part)
                if self._stream is not None:
                    self._stream.synchronize()
        except BaseException:
            parts.clear()
            raise

    def _on_device(self) -> Any:
        if self._stream is None:
            return nullcontext()
        stack = ExitStack()
        stack.enter_context(torch.cuda.device(self._device))
        stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def _move(self, part: Part) -> None:
        stored, place = part.stored, part.place
        first = part.rows.start - place.rows.start
        started_s = time.perf_counter()
        if self._stream is None and place.is_copy_of(stored.dtype):
            target = place.target[first : first + part.rows.stop - part.rows.start]
            stored.read_rows(part.rows, place.columns, bytes_of(target))
            self.read_s += time.perf_counter() - started_s
            return
        buffer, copied = self._buffer(), self._copied[self._turn]
        waited_s = time.perf_counter()
        numbers = buffer[: part.num_bytes]
        stored.read_rows(part.rows, place.columns, numbers.numpy())
        read_s = time.perf_counter()
        shape = (part.rows.stop - part.rows.start, -1)
        rows = numbers.view(stored.dtype).view(shape if len(stored.shape) > 1 else shape[:1])
        if not place.is_copy_of(stored.dtype):  # converted where it goes
            rows = rows.to(self._device, non_blocking=True)
        place.write(rows, first)
        if copied is not None:
            copied.record()
        self._turn = (self._turn + 1) % BUFFERS
        self.read_s += read_s - waited_s
        self.place_s += waited_s - started_s + time.perf_counter() - read_s

    def _buffer(self) -> torch.Tensor:
        """Return memory whose last content has been copied."""
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        if not len(self._buffers[self._turn]):
            self._buffers[self._turn] = torch.empty(
                self._buffer_bytes, dtype=torch.uint8, pin_memory=copied is not None
            )
        return self._buffers[self._turn]


def read_safetensors(
    files: Sequence[Path],
    places: WeightPlaces,
    scales: Scales | None = None,
    *,
    device: torch.device | None = None,
    shows_progress: bool = True,
) -> None:
    """Read all that `places`, which are on `device`, and `scales` want of some files.

    Raises:
        ConfigError: a file cannot be read, or a tensor does not fit.
    """
    started_s = time.perf_counter()
    with ExitStack() as stack:
        opened = [stack.enter_context(SafetensorsFile(path)) for path in files]
        parts = [part for file in opened for part in _parts(file, places, scales)]
        num_bytes = sum(part.num_bytes for part in parts)
        largest = max((part.num_bytes for part in parts), default=0)
        lanes = [Lane(device or torch.device("cpu"), largest) for _ in range(num_threads())]
        progress = stack.enter_context(
            bar(
                total=num_bytes,
                desc="Loading safetensors",
                unit="B",
                unit_scale=True,
                disable=not shows_progress,
            )
        )
        queue = PartQueue(parts, progress)
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="weights") as pool:
            for lane in [pool.submit(lane.run, queue) for lane in lanes]:
                lane.result()
    took_s = time.perf_counter() - started_s
    logger.info(
        "weights read num_files=%d num_bytes=%d duration_s=%.3f gb_per_s=%.2f num_threads=%d "
        "read_s=%.3f place_s=%.3f",
        len(files),
        num_bytes,
        took_s,
        num_bytes / took_s / 1e9,
        len(lanes),
        np.mean([lane.read_s for lane in lanes]),
        np.mean([lane.place_s for lane in lanes]),
    )


def num_threads() -> int:
    """Return how many threads read: reading a cached file is copying, which takes a processor."""
    return max(2, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def _parts(file: SafetensorsFile, places: WeightPlaces, scales: Scales | None) -> list[Part]:
    """Return what is to be read of a file, in its order; scales, which are small, at once."""
    parts: list[Part] = []
    for stored in file.tensors:
        if scales is not None and scales.owns(stored.name):
            scales.add(stored.name, stored.read())
            continue
        place = places.find(stored.name, stored.dtype, stored.shape)
        if place is not None:
            parts += _cut(stored, place)
    return parts


def _cut(stored: StoredTensor, place: Place) -> list[Part]:
    whole = Part(stored, place, place.rows)
    step = max(1, PART_BYTES // max(1, whole.row_bytes))
    starts = range(place.rows.start, place.rows.stop, step)
    return [
        Part(stored, place, slice(start, min(start + step, place.rows.stop))) for start in starts
    ]
