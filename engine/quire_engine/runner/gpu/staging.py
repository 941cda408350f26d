"""What the CPU tells the GPU about a step, in one copy.

Everything is written into one pinned buffer and copied at once. The device's side of it stays in
place, so that CUDA graphs can read what `reserve` gave a fixed address. The pinned side is a ring:
the CPU may fill the next buffer while the copy of the last one has not run yet.
"""

from typing import Any

import numpy as np
import torch

from quire_engine.errors import QuireError

ALIGNMENT = 16
NUM_BUFFERS = 4
"""One more than steps can be in flight, and one more for the step that is being built."""

Array = np.ndarray[Any, np.dtype[Any]]


class Region:
    """A place of its own in the buffer, with the same device address in every step."""

    def __init__(self, staging: "Staging", offset: int, size: int, dtype: np.dtype[Any]) -> None:
        self._staging, self._dtype = staging, dtype
        self._start, self._end = offset, offset + size * dtype.itemsize
        self.device = staging.device_view(self._start, self._end, dtype)
        """What kernels read, after `Staging.send`."""

    @property
    def host(self) -> Array:
        """This step's values, to be written before `Staging.send`; their last use is unknown."""
        return self._staging.host_view(self._start, self._end, self._dtype)


class Staging:
    """Collects the arrays of one step and sends them."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device_bytes = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        is_cuda = device.type == "cuda"
        self._pinned = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=is_cuda)
            for _ in range(NUM_BUFFERS)
        ]
        self._host = [pinned.numpy() for pinned in self._pinned]
        self._sent = [torch.cuda.Event() if is_cuda else None for _ in range(NUM_BUFFERS)]
        self._turn = 0
        self._reserved = 0
        self._used = 0

    def reserve(self, size: int, dtype: Any) -> Region:
        """Return a region of `size` numbers; before the first `put`."""
        kind = np.dtype(dtype)
        region = Region(self, self._reserved, size, kind)
        self._reserved = self._used = _aligned(self._reserved + size * kind.itemsize)
        return region

    def put(self, array: Array) -> torch.Tensor:
        """Add an array to this step; return where the device will have it after `send`.

        Raises:
            QuireError: the buffer is full, which is a mistake in its size.
        """
        array = np.ascontiguousarray(array)
        start, end = self._used, self._used + array.nbytes
        if end > len(self._host[0]):
            raise QuireError(f"{end} bytes to stage exceed the buffer's {len(self._host[0])}")
        self.host_view(start, end, array.dtype)[:] = array.reshape(-1)
        self._used = _aligned(end)
        return self.device_view(start, end, array.dtype).view(array.shape)

    def send(self) -> None:
        """Copy what this step put, on the current stream, and begin the next."""
        pinned, event = self._pinned[self._turn], self._sent[self._turn]
        self._device_bytes[: self._used].copy_(pinned[: self._used], non_blocking=True)
        if event is not None:
            event.record()
        self._used = self._reserved
        self._turn = (self._turn + 1) % NUM_BUFFERS
        upcoming = self._sent[self._turn]
        if upcoming is not None:
            upcoming.synchronize()  # of a step long gone: returns at once

    def host_view(self, start: int, end: int, dtype: np.dtype[Any]) -> Array:
        return self._host[self._turn][start:end].view(dtype)

    def device_view(self, start: int, end: int, dtype: np.dtype[Any]) -> torch.Tensor:
        return self._device_bytes[start:end].view(_TORCH_TYPES[dtype.name])


_TORCH_TYPES = {
    "uint8": torch.uint8,
    "bool": torch.bool,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
}


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
