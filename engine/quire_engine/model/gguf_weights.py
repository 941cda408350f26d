"""Tensors of a GGUF file, dequantized, under the names and layouts of Hugging Face."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import dequantize

from quire_engine.errors import ConfigError
from quire_engine.model.families import FAMILIES
from quire_engine.model.gguf_metadata import TensorEntry, read_metadata
from quire_engine.model.spec import ModelSpec
from quire_engine.progress import bar

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def read_gguf(
    path: Path, spec: ModelSpec, *, shows_progress: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file, or of all shards if it is the first, with a progress bar.

    Raises:
        ConfigError: the file cannot be read, or a tensor's type cannot be dequantized.
    """
    try:
        tensors = read_metadata(path).tensors
    except (ConfigError, OSError) as error:
        raise ConfigError(f"cannot read the weights {path}: {error}") from error
    permutes = FAMILIES[spec.architecture].gguf_permutes_qk
    progress = bar(tensors.items(), desc="Loading GGUF", unit="tensors", disable=not shows_progress)
    for name, entry in progress:
        values = _dequantize(name, entry)
        if permutes:
            values = _restore_rows(values, name, spec)
        yield hugging_face_name(name), torch.from_numpy(values)


def hugging_face_name(name: str) -> str:
    """Translate a tensor's name; one that is unknown stays as it is, for the error message."""
    if match := _LAYER.fullmatch(name):
        layer, part, kind = match.groups()
        theirs = LAYER_NAMES.get(part)
        return f"model.layers.{layer}.{theirs}.{kind}" if theirs else name
    part, _, kind = name.rpartition(".")
    return f"{NAMES[part]}.{kind}" if part in NAMES else name


def _dequantize(name: str, entry: TensorEntry) -> np.ndarray[Any, Any]:
    """Return a tensor's values as float32, outermost dimension first."""
    shape = tuple(reversed(entry.shape))
    try:
        kind = gguf.GGMLQuantizationType(entry.ggml_type)
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, kind)
        data = np.memmap(entry.file, mode="r", offset=entry.position, shape=bytes_shape)
        values = dequantize(data, kind)
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"tensor {name} of {entry.file} has type {entry.ggml_type}, "
            f"which cannot be dequantized: {error}"
        ) from error
    # Copied, because unquantized tensors are views of the read-only file.
    return np.array(values, dtype=np.float32).reshape(shape)


def _restore_rows(values: np.ndarray[Any, Any], name: str, spec: ModelSpec) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's order of the rows of q and k: pairs side by side in every head."""
    match = _LAYER.fullmatch(name)
    num_heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}.get(
        match.group(2) if match else ""
    )
    if num_heads is None:
        return values
    pairs = values.reshape(num_heads, spec.head_dim // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
