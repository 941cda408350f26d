"""How many bytes a weight takes in each of the formats that checkpoints come in.

Quantization is of the linear layers inside the decoder; embeddings, head and norms keep the
model's type, which is what makes a 4-bit model larger than half a byte for each parameter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.capacity.errors import CapacityError

DTYPE_BYTES: Mapping[str, int] = {
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "float32": 4,
    "float": 4,
}
KV_DTYPE_BYTES: Mapping[str, int] = {**DTYPE_BYTES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}

GROUP_SIZE = 128
"""Weights that share a scale where a config does not say."""
SCALE_BYTES = 2
FP8_BLOCK_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """What a linear layer's weights are stored as."""

    name: str
    bytes_per_weight: float
    """Scales and zero points included."""
    quantizes_head: bool = False


def plain(dtype: str) -> WeightFormat:
    """Return the format of weights that are not quantized.

    Raises:
        CapacityError: the type is unknown.
    """
    return WeightFormat(name=dtype, bytes_per_weight=dtype_bytes(dtype))


def dtype_bytes(dtype: str) -> int:
    """Return the size of one number.

    Raises:
        CapacityError: the type is unknown.
    """
    if dtype not in DTYPE_BYTES:
        raise CapacityError(f"dtype must be one of {', '.join(DTYPE_BYTES)}; not {dtype!r}")
    return DTYPE_BYTES[dtype]


def kv_dtype_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Return the size of one cached number; auto is the model's type.

    Raises:
        CapacityError: the type is unknown.
    """
    if kv_cache_dtype == "auto":
        return dtype_bytes(dtype)
    if kv_cache_dtype not in KV_DTYPE_BYTES:
        known = ", ".join(("auto", *KV_DTYPE_BYTES))
        raise CapacityError(f"kv_cache_dtype must be one of {known}; not {kv_cache_dtype!r}")
    return KV_DTYPE_BYTES[kv_cache_dtype]


def _grouped(name: str, bits: int, group_size: int, *, has_zeros: bool) -> WeightFormat:
    overhead = SCALE_BYTES + (bits / 8 if has_zeros else 0)
    return WeightFormat(name=name, bytes_per_weight=bits / 8 + overhead / group_size)


NAMED: Mapping[str, WeightFormat] = {
    "awq": _grouped("awq 4-bit", 4, GROUP_SIZE, has_zeros=True),
    "gptq": _grouped("gptq 4-bit", 4, GROUP_SIZE, has_zeros=True),
    "int4": _grouped("int4", 4, GROUP_SIZE, has_zeros=False),
    "int8": WeightFormat(name="int8", bytes_per_weight=1.0),
    "fp8": WeightFormat(name="fp8", bytes_per_weight=1.0),
    # Blocks of 32 share a one-byte scale.
    "mxfp4": WeightFormat(name="mxfp4", bytes_per_weight=0.5 + 1 / 32),
    # Blocks of 16 share a one-byte scale.
    "nvfp4": WeightFormat(name="nvfp4", bytes_per_weight=0.5 + 1 / 16),
}
"""Formats that a person may name."""


def named(quantization: str) -> WeightFormat:
    """Return the format that a person names.

    Raises:
        CapacityError: no such format.
    """
    if quantization not in NAMED:
        raise CapacityError(f"quantization must be one of {', '.join(NAMED)}; not {quantization!r}")
    return NAMED[quantization]


def of_config(config: Mapping[str, Any], dtype: str) -> WeightFormat:
    """Return the format that a config.json's `quantization_config` describes, `dtype` without one.

    Raises:
        CapacityError: a method that is not known.
    """
    section = config.get("quantization_config") or config.get("compression_config")
    if not section:
        return plain(dtype)
    method = str(section.get("quant_method", "")).lower().replace("_", "-")
    match method:
        case "awq" | "gptq":
            return _packed(method, section)
        case "fp8" | "fbgemm-fp8":
            return _fp8(section)
        case "compressed-tensors":
            return _compressed(section)
        case "mxfp4":
            return NAMED["mxfp4"]
        case "bitsandbytes" if section.get("load_in_4bit"):
            return _grouped("bitsandbytes 4-bit", 4, 64, has_zeros=False)
        case "bitsandbytes":
            return NAMED["int8"]
        case "modelopt":
            algorithm = str(section.get("quant_algo", "")).lower()
            return NAMED["nvfp4" if "fp4" in algorithm else "fp8"]
    raise CapacityError(
        f"quant_method {section.get('quant_method')!r} is not known; name the format with "
        f"quantization: {', '.join(NAMED)}"
    )


def _packed(method: str, section: Mapping[str, Any]) -> WeightFormat:
    bits = int(section.get("bits", section.get("w_bit", 4)))
    group_size = int(section.get("group_size", section.get("q_group_size", GROUP_SIZE)))
    if group_size <= 0:  # one scale for a whole row
        return WeightFormat(name=f"{method} {bits}-bit", bytes_per_weight=bits / 8)
    return _grouped(f"{method} {bits}-bit", bits, group_size, has_zeros=True)


def _fp8(section: Mapping[str, Any]) -> WeightFormat:
    block = section.get("weight_block_size")
    if not block:
        return NAMED["fp8"]
    scale = FP8_BLOCK_SCALE_BYTES / (int(block[0]) * int(block[1]))
    return WeightFormat(name="fp8 in blocks", bytes_per_weight=1 + scale)


def _compressed(section: Mapping[str, Any]) -> WeightFormat:
    groups = section.get("config_groups") or {}
    found = (group["weights"] for group in groups.values() if group.get("weights"))
    weights: Mapping[str, Any] = next(found, {})
    bits, group_size = int(weights.get("num_bits", 8)), int(weights.get("group_size") or 0)
    name = f"compressed-tensors {weights.get('type', 'int')}{bits}"
    if group_size <= 0:
        return WeightFormat(name=name, bytes_per_weight=bits / 8)
    return _grouped(name, bits, group_size, has_zeros=not weights.get("symmetric", True))
