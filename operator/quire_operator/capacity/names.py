"""A model's size from its name alone: "8B", "Qwen3-30B-A3B-FP8", "70B-AWQ".

The architecture is that of a well-known model of about the size, scaled to the exact number of
parameters: weights come out as the name says, the cache as that model's.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from quire_operator.capacity.architecture import Architecture
from quire_operator.capacity.footprint import DEFAULT_DTYPE, Footprint, footprint_of_architecture
from quire_operator.capacity.quantization import WeightFormat, named, plain

_BILLION = 10**9
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
# The size in such a name is what one token activates.
_EXPERTS_ASIDE = re.compile(r"\d+b-\d+e(?![a-z0-9])", re.IGNORECASE)
# Experts share attention and embeddings: 8x7B is 46.7 billion, 8x22B is 140.6.
_SHARE_OF_EXPERTS = 0.82

_MARKS: tuple[tuple[str, str], ...] = (
    (r"awq|gptq|w4a16|int4|4bit|4-bit|q4_[0-9k]\w*", "awq"),
    (r"nvfp4|fp4", "nvfp4"),
    (r"mxfp4", "mxfp4"),
    (r"fp8", "fp8"),
    (r"w8a8|w8a16|int8|8bit|8-bit|q8_0", "int8"),
)
"""Marks of quantization in names, most particular last."""


def _typical(
    billions: float,
    num_layers: int,
    hidden_size: int,
    mlp_width: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    vocab_size: int,
    *,
    is_tied: bool = False,
) -> tuple[float, Architecture]:
    embedding = vocab_size * hidden_size
    attention = 2 * hidden_size * head_dim * (num_heads + num_kv_heads)
    return billions, Architecture(
        num_layers=num_layers,
        hidden_size=hidden_size,
        mlp_width=mlp_width,
        vocab_size=vocab_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position=32768,
        num_linear=num_layers * (attention + 3 * hidden_size * mlp_width),
        num_replicated=(2 * num_layers + 1) * hidden_size,
        num_embedding=embedding,
        num_head=0 if is_tied else embedding,
    )


_TYPICAL: Mapping[float, Architecture] = dict(
    (
        _typical(0.135, 30, 576, 1536, 9, 3, 64, 49152, is_tied=True),
        _typical(0.5, 24, 896, 4864, 14, 2, 64, 151936, is_tied=True),
        _typical(1, 16, 2048, 8192, 32, 8, 64, 128256, is_tied=True),
        _typical(1.7, 28, 2048, 6144, 16, 8, 128, 151936, is_tied=True),
        _typical(3, 28, 3072, 8192, 24, 8, 128, 128256, is_tied=True),
        _typical(4, 36, 2560, 9728, 32, 8, 128, 151936, is_tied=True),
        _typical(7, 32, 4096, 14336, 32, 8, 128, 32768),
        _typical(8, 32, 4096, 14336, 32, 8, 128, 128256),
        _typical(14, 40, 5120, 17408, 40, 8, 128, 151936),
        _typical(32, 64, 5120, 25600, 64, 8, 128, 151936),
        _typical(70, 80, 8192, 28672, 64, 8, 128, 128256),
        _typical(123, 88, 12288, 28672, 96, 8, 128, 32768),
        _typical(405, 126, 16384, 53248, 128, 8, 128, 128256),
    )
)
"""Well-known models, by billions of parameters as their names say."""


def footprint_of_name(
    name: str, *, dtype: str = "auto", quantization: str = "", kv_cache_dtype: str = "auto"
) -> Footprint | None:
    """Return a rough footprint for the size in a name, or None if the name has none.

    Weights follow from the number of parameters; layers, heads and cache are those of the usual
    dense model of that size, so the answer is good to some ten percent of weights and a factor of
    two of cache. `quantization` empty: as the name says (AWQ, GPTQ-Int4, FP8, Q4_K_M, ...).

    Raises:
        CapacityError: a type or the quantization is unknown.
    """
    num_parameters = parameters_in_name(name)
    if num_parameters is None:
        return None
    resolved = DEFAULT_DTYPE if dtype == "auto" else dtype
    return footprint_of_architecture(
        _scaled(num_parameters),
        name=name,
        origin="name",
        dtype=resolved,
        weights=_weights(name, quantization, resolved),
        kv_cache_dtype=kv_cache_dtype,
    )


def parameters_in_name(name: str) -> int | None:
    """Return the number of parameters that a name states; the largest, if it states several."""
    last = name.rsplit("/", 1)[-1]
    if _EXPERTS_ASIDE.search(last):
        return None
    sizes = [_count(*match.groups()) for match in _SIZE.finditer(last)]
    return max(sizes) if sizes and max(sizes) > 0 else None


def _count(num_experts: str | None, number: str, unit: str) -> int:
    each = float(number) * (_BILLION if unit in "bB" else _BILLION / 1000)
    return int(each * (int(num_experts) * _SHARE_OF_EXPERTS if num_experts else 1))


def _scaled(num_parameters: int) -> Architecture:
    billions = num_parameters / _BILLION
    near = _TYPICAL[min(_TYPICAL, key=lambda size: abs(math.log(size / billions)))]
    outside = near.num_replicated + near.num_embedding + near.num_head
    return replace(near, num_linear=max(num_parameters - outside, num_parameters // 2))


def _weights(name: str, quantization: str, dtype: str) -> WeightFormat:
    if quantization:
        return named(quantization)
    found = plain(dtype)
    for pattern, mark in _MARKS:
        if re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", name, re.IGNORECASE):
            found = named(mark)
    return found
