"""The compiled kernels, as Python sees them: mirrors the structs and functions of decoder.c."""

import ctypes
import logging
import os
import tempfile
from collections.abc import Mapping
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

from quire_engine.kernels.cpu.build import BuildError, FolderError, build

logger = logging.getLogger(__name__)

BLOCK = 32
"""Outputs of a block of packed weights; half of them gates where a linear is gated."""
MAX_HEAD_DIM = 256
MAX_GROUP = 64
"""Most query heads per key/value head."""

STORE, ADD, GATED = range(3)
"""What follows a product, as `follow_up` of a linear."""


class LinearStruct(ctypes.Structure):
    """A packed linear: `linear` of linear.h."""

    _fields_ = (
        ("weights", c_void_p),
        ("bias", c_void_p),
        ("num_outputs", c_int64),
        ("num_pairs", c_int64),
        ("follow_up", c_int64),
    )


class LayerStruct(ctypes.Structure):
    """One decoder layer: `layer` of decoder.c."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("rotary_dim", c_int64),
        ("window", c_int64),
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
    )


class ModelStruct(ctypes.Structure):
    """A model: `model` of decoder.c."""

    _fields_ = (
        ("num_layers", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_size", c_int64),
        ("norm_eps", c_float),
        ("scale", c_float),
        ("layers", POINTER(LayerStruct)),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", LinearStruct),
    )


class ScratchStruct(ctypes.Structure):
    """Memory of a step: `scratch` of decoder.c."""

    _fields_ = (
        ("hidden", c_void_p),
        ("qkv", c_void_p),
        ("x", c_void_p),
        ("queries", c_void_p),
        ("attended", c_void_p),
        ("gated", c_void_p),
        ("line_chunk", c_void_p),
        ("tile_chunk", c_void_p),
        ("tile_start", c_void_p),
    )


FUNCTIONS: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "quire_pool_create": (c_void_p, (c_int,)),
    "quire_pool_destroy": (None, (c_void_p,)),
    "quire_trim": (None, ()),
    "quire_pack": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int, c_void_p)),
    "quire_linear": (
        None,
        (c_void_p, POINTER(LinearStruct), c_void_p, c_int64, c_void_p, c_int64),
    ),
    "quire_forward": (
        None,
        (c_void_p, POINTER(ModelStruct), POINTER(ScratchStruct), c_void_p, c_int64),
    ),
    "quire_logits": (
        None,
        (
            c_void_p,
            POINTER(ModelStruct),
            POINTER(ScratchStruct),
            c_void_p,
            c_int64,
            c_void_p,
        ),
    ),
}
"""Result and arguments of each function."""


class Library:
    """The loaded kernels with a pool of threads. Calls must not overlap."""

    def __init__(self, path: Path, num_threads: int) -> None:
        self._functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self._functions, name)
            function.restype, function.argtypes = result, arguments
        self._pid = os.getpid()
        self._pool = self._functions.quire_pool_create(num_threads)
        if not self._pool:
            raise MemoryError("no memory for the pool of threads")

    def pack(
        self, weight: int, num_outputs: int, num_inputs: int, *, gated: bool, packed: int
    ) -> None:
        """Lay out the weight at an address as the kernels want it, at another."""
        self._functions.quire_pack(self._pool, weight, num_outputs, num_inputs, gated, packed)

    def trim(self) -> None:
        """Give memory that was freed back to the system."""
        self._functions.quire_trim()

    def linear(self, linear: LinearStruct, x: int, num_rows: int, y: int, y_stride: int) -> None:
        """Run one linear by itself."""
        self._functions.quire_linear(self._pool, linear, x, num_rows, y, y_stride)

    def forward(
        self, model: ModelStruct, scratch: ScratchStruct, chunks: int, num_chunks: int
    ) -> None:
        """Compute a step's tokens; leaves their hidden states in the scratch memory."""
        self._functions.quire_forward(self._pool, model, scratch, chunks, num_chunks)

    def logits(
        self, model: ModelStruct, scratch: ScratchStruct, lines: int, num_lines: int, logits: int
    ) -> None:
        """Write the logits of some lines of the last step."""
        self._functions.quire_logits(self._pool, model, scratch, lines, num_lines, logits)

    def close(self) -> None:
        """End the threads."""
        pool, self._pool = self._pool, None
        # The threads of a forked process stayed with its parent.
        if pool and os.getpid() == self._pid:
            self._functions.quire_pool_destroy(pool)

    def __del__(self) -> None:
        if getattr(self, "_pool", None):
            self.close()


def load_library(num_threads: int) -> Library | None:
    """Compile and load the kernels; None, and one line in the log, where that fails."""
    try:
        return _load(num_threads)
    except (BuildError, OSError) as error:
        logger.warning("no native CPU kernels, torch computes instead reason=%s", error)
    return None


def _load(num_threads: int) -> Library:
    folder = cache_folder()
    if folder is not None:
        try:
            return Library(build(folder), num_threads)
        except FolderError as error:
            logger.info("CPU kernels are not kept reason=%s", error)
    with tempfile.TemporaryDirectory(prefix="quire-kernels-") as scratch:
        return Library(build(Path(scratch)), num_threads)


def cache_folder() -> Path | None:
    """Return where compiled kernels are kept, None for a user without a home."""
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "quire" / "kernels"
    try:
        return Path.home() / ".cache" / "quire" / "kernels"
    except RuntimeError:
        return None
