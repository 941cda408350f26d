"""Reads the header of a GGUF file: its metadata and its table of tensors, never their contents.

A vocabulary is an array of a hundred thousand strings, which `gguf.GGUFReader` turns into as many
numpy arrays; reading the bytes straight takes a fraction of that time. The format is described in
ggml's docs/gguf.md; versions 2 and 3, little-endian.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_F32 = 0
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where a tensor lies; the contiguous dimension is first in `shape`."""

    file: Path
    shape: tuple[int, ...]
    ggml_type: int
    position: int
    """Of its first byte in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufMetadata:
    """The headers of a model's file, or of all its shards."""

    path: Path
    values: Mapping[str, Any]
    """Metadata by key, of the first shard; arrays are lists."""
    tensors: Mapping[str, TensorEntry]
    """Of all shards."""

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a key of the file's own architecture, such as `block_count`."""
        return self.values.get(f"{self.architecture}.{name}", default)

    def read_floats(self, name: str) -> tuple[float, ...] | None:
        """Return a small float32 tensor; None where the file has no such tensor."""
        entry = self.tensors.get(name)
        if entry is None or entry.ggml_type != _F32:
            return None
        (count,) = entry.shape
        with entry.file.open("rb") as file:
            file.seek(entry.position)
            return struct.unpack(f"<{count}f", file.read(4 * count))


def read_metadata(path: Path) -> GgufMetadata:
    """Read the header of a file; given the first of several shards, those of all of them.

    Raises:
        ConfigError: not a GGUF file, of an unknown version, or cut off.
    """
    values, tensors = _read_file(path)
    for name in shard_names(path.name)[1:] if is_first_shard(path.name) else ():
        tensors |= _read_file(path.with_name(name))[1]
    return GgufMetadata(path=path, values=values, tensors=tensors)


def shard_names(name: str) -> list[str]:
    """Return the names of all shards of a GGUF file, `x-00001-of-00003.gguf`, or its own alone."""
    stem, _, total = name.removesuffix(".gguf").rpartition("-of-")
    if not total.isdigit() or not stem[-5:].isdigit():
        return [name]
    return [f"{stem[:-5]}{part:05d}-of-{total}.gguf" for part in range(1, int(total) + 1)]


def is_first_shard(name: str) -> bool:
    """Tell whether a GGUF file has the metadata of its model: the first shard, or the only one."""
    return shard_names(name)[0] == name


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _read_header(path, data)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} is not a complete GGUF file: {error}") from error


def _read_header(path: Path, data: mmap) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    if data[:4] != _MAGIC:
        raise ConfigError(f"{path} is not a GGUF file: it starts with {data[:4]!r}, not {_MAGIC!r}")
    version, num_tensors, num_values = struct.unpack_from("<IQQ", data, 4)
    if version not in _VERSIONS:
        raise ConfigError(f"{path} is GGUF version {version}; versions 2 and 3 are supported")
    reader = _Reader(data, 24)
    values: dict[str, Any] = {}
    for _ in range(num_values):
        key = reader.string()
        values[key] = reader.value(reader.scalar("I"))
    table = [reader.tensor() for _ in range(num_tensors)]
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    data_start = -(-reader.position // alignment) * alignment
    return values, {
        name: TensorEntry(file=path, shape=shape, ggml_type=ggml_type, position=data_start + offset)
        for name, shape, ggml_type, offset in table
    }


class _Reader:
    """A position in the bytes of a header."""

    def __init__(self, data: mmap, position: int) -> None:
        self._data = data
        self.position = position

    def scalar(self, code: str) -> Any:
        return self._unpack(f"<{code}")[0]

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        data, position, end = self._data, self.position, len(self._data)
        found = []
        for _ in range(count):
            start = position + 8
            position = start + int.from_bytes(data[position:start], "little")
            if position > end:
                raise ValueError(f"a string ends at byte {position} of {end}")
            found.append(data[start:position].decode())
        self.position = position
        return found

    def value(self, type_: int) -> Any:
        if type_ in _SCALARS:
            return self.scalar(_SCALARS[type_])
        if type_ == _STRING:
            return self.string()
        if type_ == _ARRAY:
            return self._array()
        raise ValueError(f"unknown value type {type_}")

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read a line of the table: name, shape, type, and offset in the data section."""
        name = self.string()
        shape = self._unpack(f"<{self.scalar('I')}Q")
        ggml_type, offset = self._unpack("<IQ")
        return name, shape, ggml_type, offset

    def _array(self) -> list[Any]:
        type_, count = self._unpack("<IQ")
        if type_ == _STRING:
            return self.strings(count)
        if type_ in _SCALARS:
            return list(self._unpack(f"<{count}{_SCALARS[type_]}"))
        return [self.value(type_) for _ in range(count)]

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self.position)
        self.position += struct.calcsize(layout)
        return values
