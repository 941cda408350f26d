"""A safetensors file: what its header says, and reading parts of tensors into given memory.

The format: 8 bytes length of the header, the header in JSON, then all numbers; its offsets count
from there. Read here and not through the library, because that gives tensors no place.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from quire_engine.errors import ConfigError

MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

ByteArray = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, as a matrix of bytes: a vector is a matrix of one column."""

    file: "SafetensorsFile"
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """From the file's first byte."""

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def read_rows(self, rows: slice, columns: slice, into: ByteArray) -> None:
        """Read some columns of some rows into as many bytes.

        Raises:
            ConfigError: the file cannot be read.
        """
        size = self.dtype.itemsize
        first, end = columns.start * size, columns.stop * size
        if end - first == self.row_bytes:
            self.file.read(self.offset + rows.start * self.row_bytes, into)
        else:
            lines = self.file.view(self.offset, self.num_rows * self.row_bytes)
            part = lines.reshape(self.num_rows, self.row_bytes)[rows, first:end]
            np.copyto(into.reshape(part.shape), part)

    def read(self) -> torch.Tensor:
        """Return all of it, in memory of its own.

        Raises:
            ConfigError: the file cannot be read.
        """
        numbers = torch.empty(self.shape, dtype=self.dtype)
        self.file.read(self.offset, bytes_of(numbers))
        return numbers


class SafetensorsFile:
    """An open file. Threads may read it at the same time."""

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            ConfigError: it cannot be read, or is no safetensors file.
        """
        self.path = path
        self.tensors: list[StoredTensor] = []
        """In the order in which they lie in the file."""
        self._view: ByteArray | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)
        self._view = None

    def read(self, offset: int, into: ByteArray) -> None:
        """Fill `into` with the bytes from `offset` on.

        Raises:
            ConfigError: the file cannot be read, or ends too early.
        """
        rest = into.reshape(-1).data
        try:
            while rest:
                num_bytes = os.preadv(self._fd, [rest], offset)
                if not num_bytes:
                    raise self._unreadable("it ends too early; was it copied completely?")
                rest, offset = rest[num_bytes:], offset + num_bytes
        except OSError as error:
            raise self._unreadable(error) from error

    def view(self, offset: int, num_bytes: int) -> ByteArray:
        """Return bytes of the file as they are in the system's cache."""
        if self._view is None:
            self._view = np.memmap(self.path, dtype=np.uint8, mode="r")
        return self._view[offset : offset + num_bytes]

    def _read_header(self) -> None:
        size = os.fstat(self._fd).st_size
        if size < 8:
            raise self._unreadable(f"it has {size} bytes, less than any header")
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise self._unreadable(f"a header of {length} bytes does not fit its {size} bytes")
        start = 8 + length
        header = np.empty(length, np.uint8)
        self.read(8, header)
        try:
            entries = json.loads(header.tobytes())
            found = [
                self._tensor(name, entry, start)
                for name, entry in entries.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(f"its header is broken: {error!r}") from error
        self.tensors = sorted(found, key=lambda tensor: tensor.offset)
        for tensor in self.tensors:
            if tensor.offset + tensor.num_rows * tensor.row_bytes > size:
                raise self._unreadable(f"{tensor.name} ends behind its {size} bytes")

    def _tensor(self, name: str, entry: dict[str, Any], start: int) -> StoredTensor:
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(map(int, entry["shape"]))
        if dtype is None:
            raise ConfigError(
                f"tensor {name} of {self.path} has type {entry['dtype']}, which is not supported; "
                f"{', '.join(DTYPES)} are"
            )
        first, end = entry["data_offsets"]
        if first < 0 or end - first != prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {list(shape)} lies at {first} to {end}")
        return StoredTensor(file=self, name=name, dtype=dtype, shape=shape, offset=start + first)

    def _unreadable(self, reason: object) -> ConfigError:
        return ConfigError(f"cannot read the weights {self.path}: {reason}")


def bytes_of(tensor: torch.Tensor) -> ByteArray:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy()
