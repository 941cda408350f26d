"""Small GGUF files, written with the format's own library."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LLAMA = {
    "context_length": 128,
    "block_count": 2,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    values: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> Path:
    """Write a file with `{architecture}.{name}` values, tokenizer values and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {**LLAMA, **(values or {})}.items():
        if value is not None:
            _add(writer, f"{architecture}.{name}", value)
    for name, value in (tokenizer or {}).items():
        _add(writer, f"tokenizer.{name}", value)
    for name, tensor in (tensors or {"token_embd.weight": np.zeros((8, 32))}).items():
        writer.add_tensor(name, np.asarray(tensor, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))
