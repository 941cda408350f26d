"""A decoder that runs in C: packs the weights of a model and calls the kernels.

Legend: E hidden size, V vocabulary, T lines of a step, B lines to sample.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quire_engine.kernels.cpu.arena import Arena, aligned
from quire_engine.kernels.cpu.library import (
    ADD,
    BLOCK,
    GATED,
    MAX_GROUP,
    MAX_HEAD_DIM,
    STORE,
    LayerStruct,
    Library,
    LinearStruct,
    ModelStruct,
    ScratchStruct,
)
from quire_engine.model.rope import RopeTable
from quire_engine.model.spec import LayerSpec, ModelSpec
from quire_engine.runner.memory import KvCache

Weights = dict[str, torch.Tensor]

LANES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeChunk:
    """The tokens of one sequence in one step."""

    token_ids: int
    """Address of the sequence's tokens by position, int64."""
    blocks: int
    """Address of its block table, int64."""
    start: int
    num_tokens: int
    first_line: int


def unsupported(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> str | None:
    """Return why the kernels cannot run a model, None if they can."""
    if dtype != torch.bfloat16:
        return f"dtype {str(dtype).removeprefix('torch.')} is not bfloat16"
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        return "the processor has no AVX512-BF16"
    if spec.head_dim % LANES or spec.head_dim > MAX_HEAD_DIM:
        return f"head_dim={spec.head_dim} is no multiple of {LANES} up to {MAX_HEAD_DIM}"
    if spec.num_heads // spec.num_kv_heads > MAX_GROUP:
        return f"{spec.num_heads // spec.num_kv_heads} heads share keys; {MAX_GROUP} may"
    if spec.hidden_size % 2 or spec.intermediate_size % 2:
        return "hidden_size or intermediate_size is odd"
    if any(layer.rope.rotary_dim % 2 for layer in spec.layers):
        return "an odd number of dimensions is rotated"
    if block_size % LANES:
        return f"block_size={block_size} is no multiple of {LANES}"
    return None


class PackedWeights:
    """Linear layers in the layout of the kernels, and the floats beside them."""

    def __init__(self, library: Library, weights: Weights, num_bytes: int) -> None:
        self._library, self._weights = library, weights
        self._arena = Arena(num_bytes)
        self._kept: list[torch.Tensor] = []

    def floats(self, name: str) -> int | None:
        """Take a vector of weights; return its address as float32, None if there is none."""
        vector = self._weights.pop(name, None)
        return None if vector is None else self.keep(vector.to(torch.float32).contiguous())

    def keep(self, tensor: torch.Tensor) -> int:
        """Keep a tensor alive; return its address."""
        self._kept.append(tensor)
        return tensor.data_ptr()

    def linear(self, name: str, follow_up: int) -> LinearStruct:
        """Take a weight and its bias, and pack them."""
        weight = self._weights.pop(name + ".weight")
        return self.pack(weight, self._weights.pop(name + ".bias", None), follow_up)

    def pack(
        self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, follow_up: int
    ) -> LinearStruct:
        """Pack a weight and its bias."""
        num_outputs, num_inputs = weight_OI.shape
        packed = self._arena.take(packed_bytes(num_outputs, num_inputs))
        weight_OI = weight_OI.contiguous()
        self._library.pack(
            weight_OI.data_ptr(),
            num_outputs,
            num_inputs,
            gated=follow_up == GATED,
            packed=packed.data_ptr(),
        )
        bias = None if bias_O is None else self.keep(_pack_bias(bias_O, gated=follow_up == GATED))
        return LinearStruct(self.keep(packed), bias, num_outputs, num_inputs // 2, follow_up)


def packed_bytes(num_outputs: int, num_inputs: int) -> int:
    """Return the size of a packed weight, padded to whole blocks."""
    return -(-num_outputs // BLOCK) * BLOCK * num_inputs * 2


def _pack_bias(bias_O: torch.Tensor, *, gated: bool) -> torch.Tensor:
    """Order a bias as the blocks are: if gated, 16 gates and their 16 ups in turns."""
    parts = bias_O.to(torch.float32).view(2 if gated else 1, -1)
    width = BLOCK // len(parts)
    padded = torch.zeros(len(parts), -(-parts.shape[1] // width) * width)
    padded[:, : parts.shape[1]] = parts
    return padded.view(len(parts), -1, width).transpose(0, 1).contiguous()


def _arena_bytes(weights: Weights, tied_head: torch.Tensor) -> int:
    packed = [w for name, w in weights.items() if w.dim() == 2 and name != "embedding.weight"]
    if "head.weight" not in weights:
        packed.append(tied_head)
    return sum(aligned(packed_bytes(*weight.shape)) for weight in packed)


class Scratch:
    """Memory of a step; grows to the largest step that came."""

    def __init__(self, spec: ModelSpec) -> None:
        q_size, width = spec.q_size, spec.intermediate_size
        self._widths = {
            "hidden": (torch.float32, spec.hidden_size),
            "qkv": (torch.float32, q_size + 2 * spec.kv_size),
            "x": (torch.bfloat16, spec.hidden_size),
            "queries": (torch.bfloat16, q_size),
            "attended": (torch.bfloat16, q_size),
            "gated": (torch.bfloat16, width),
            "line_chunk": (torch.int32, 1),
            "tile_chunk": (torch.int32, 1),
            "tile_start": (torch.int32, 1),
        }
        self._tensors: dict[str, torch.Tensor] = {}
        self._num_lines = 0
        self.struct = ScratchStruct()

    def reserve(self, num_lines: int) -> None:
        """Make room for the lines of a step. What was there is lost if it grows."""
        if num_lines <= self._num_lines:
            return
        self._num_lines = num_lines
        for name, (dtype, width) in self._widths.items():
            self._tensors[name] = torch.empty(num_lines, width, dtype=dtype)
            setattr(self.struct, name, self._tensors[name].data_ptr())


class NativeDecoder:
    """Tokens to hidden states and logits, with the cache's memory. Consumes `weights`."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, cache: KvCache, library: Library, *, max_len: int
    ) -> None:
        self.spec = spec
        self._cache, self._library, self._max_len = cache, library, max_len
        embedding_VE = weights.pop("embedding.weight")
        packed = PackedWeights(library, weights, _arena_bytes(weights, embedding_VE))
        self._packed = packed
        self._ropes = {
            rope: RopeTable(rope, max_len, torch.float32, torch.device("cpu"))
            for rope in dict.fromkeys(layer.rope for layer in spec.layers)
        }
        self._layers = (LayerStruct * spec.num_layers)(
            *(self._layer(index, layer) for index, layer in enumerate(spec.layers))
        )
        self._model = self._model_struct(embedding_VE, weights)
        self._scratch = Scratch(spec)
        self._logits_BV = torch.empty(0, spec.vocab_size)
        assert not weights, f"weights that nothing uses: {', '.join(weights)}"
        library.trim()

    def forward(self, chunks: Sequence[NativeChunk]) -> None:
        """Compute a step's tokens, at lines one after the other from 0 on."""
        last = chunks[-1]
        self._scratch.reserve(last.first_line + last.num_tokens)
        table = np.array(
            [(c.token_ids, c.blocks, c.start, c.num_tokens, c.first_line) for c in chunks],
            dtype=np.int64,
        )
        self._library.forward(self._model, self._scratch.struct, table.ctypes.data, len(chunks))

    def logits(self, lines: Sequence[int]) -> torch.Tensor:
        """Return the logits (B, V) of some lines of the last step, valid until the next call."""
        if self._logits_BV.shape[0] < len(lines):
            self._logits_BV = torch.empty(len(lines), self.spec.vocab_size)
        table = np.array(lines, dtype=np.int64)
        logits_BV = self._logits_BV[: len(lines)]
        self._library.logits(
            self._model, self._scratch.struct, table.ctypes.data, len(lines), logits_BV.data_ptr()
        )
        return logits_BV

    def _layer(self, index: int, layer: LayerSpec) -> LayerStruct:
        prefix, rope, packed = f"layers.{index}.", self._ropes[layer.rope], self._packed
        cache_TD = self._cache.by_block[index]
        keys, values = cache_TD.chunk(2)
        return LayerStruct(
            input_norm=packed.floats(prefix + "input_norm.weight"),
            mlp_norm=packed.floats(prefix + "mlp_norm.weight"),
            q_norm=packed.floats(prefix + "q_norm.weight"),
            k_norm=packed.floats(prefix + "k_norm.weight"),
            cos=packed.keep(rope.cos_PR),
            sin=packed.keep(rope.sin_PR),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            rotary_dim=layer.rope.rotary_dim,
            window=layer.sliding_window or 0,
            qkv=packed.linear(prefix + "qkv", STORE),
            out=packed.linear(prefix + "out", ADD),
            gate_up=packed.linear(prefix + "gate_up", GATED),
            down=packed.linear(prefix + "down", ADD),
        )

    def _model_struct(self, embedding_VE: torch.Tensor, weights: Weights) -> ModelStruct:
        spec, packed = self.spec, self._packed
        head_VE = weights.pop("head.weight", embedding_VE)
        return ModelStruct(
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            block_size=self._cache.block_size,
            norm_eps=spec.norm_eps,
            scale=spec.head_dim**-0.5,
            layers=ctypes.cast(self._layers, ctypes.POINTER(LayerStruct)),
            embedding=packed.keep(embedding_VE.contiguous()),
            norm=packed.floats("norm.weight"),
            head=packed.pack(head_VE, None, STORE),
        )
