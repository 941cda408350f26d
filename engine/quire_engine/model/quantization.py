"""Linears in 8-bit floating point (e4m3): what a checkpoint says of them, and their scales.

Legend: I inputs, O outputs.

Quantized or not, `WeightPlaces` stacks the weights. A quantized one keeps its 8 bits, and gets a
scale for each of its rows, or for each block of BLOCK x BLOCK numbers, under the name of the
parameter and SCALE. Scales of a whole tensor are those of its rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quire_engine.errors import ConfigError
from quire_engine.model.fp8 import BLOCK, FP8, SCALE, X_SCALE
from quire_engine.model.share import WHOLE, Share
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import NamedTensors, WeightPlaces, linears
from quire_engine.model.weights import Parameter

_WEIGHT_SCALE = (".weight_scale_inv", ".weight_scale")
_INPUT_SCALE = (".input_scale",)
_UNUSED = (".k_scale", ".v_scale", ".q_scale", ".output_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the linears of a checkpoint are quantized."""

    has_static_inputs: bool
    """The checkpoint fixes the scales of inputs; else they are found when computed."""


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Read `quantization_config` (or `compression_config`) of a model's config.

    Raises:
        ConfigError: a format that is not supported; the message names those that are.
    """
    values = config.get("quantization_config") or config.get("compression_config")
    if not values:
        return None
    method = values.get("quant_method")
    if method == "fp8":
        return _read_fp8(values)
    if method == "compressed-tensors":
        return _read_compressed_tensors(values)
    raise ConfigError(
        f"quantization {method!r} is not supported; fp8 and compressed-tensors (8-bit float) are"
    )


def _read_fp8(values: Mapping[str, Any]) -> Quantization:
    block = values.get("weight_block_size")
    if block is not None and list(block) != [BLOCK, BLOCK]:
        raise ConfigError(f"weight_block_size {block} is not supported; [{BLOCK}, {BLOCK}] is")
    scheme = values.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise ConfigError(f"activation_scheme {scheme!r} is not known; dynamic and static are")
    return Quantization(has_static_inputs=scheme == "static")


def _read_compressed_tensors(values: Mapping[str, Any]) -> Quantization:
    groups = list((values.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise ConfigError(f"compressed-tensors with {len(groups)} config groups; 1 is supported")
    weights, inputs = groups[0].get("weights") or {}, groups[0].get("input_activations") or {}
    for what, scheme in (("weights", weights), ("input_activations", inputs)):
        kind = scheme.get("type"), scheme.get("num_bits")
        if scheme and kind != ("float", 8):
            raise ConfigError(
                f"compressed-tensors with {what} of type {kind[0]} and {kind[1]} bits "
                "is not supported; float with 8 bits is"
            )
    if not weights:
        raise ConfigError("compressed-tensors without quantized weights is not supported")
    block = weights.get("block_structure")
    if block is not None and list(block) != [BLOCK, BLOCK]:
        raise ConfigError(f"block_structure {block} is not supported; [{BLOCK}, {BLOCK}] is")
    return Quantization(has_static_inputs=bool(inputs) and not inputs.get("dynamic"))


class Scales:
    """Takes the scales out of a checkpoint's tensors, to put a share of them beside the weights."""

    def __init__(self, spec: ModelSpec, quantization: Quantization, share: Share = WHOLE) -> None:
        self._quantization, self._share = quantization, share
        self._linears = linears(spec)
        self._weights: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, torch.Tensor] = {}

    def owns(self, name: str) -> bool:
        """Tell whether a tensor of the checkpoint is a scale."""
        return name.endswith((*_WEIGHT_SCALE, *_INPUT_SCALE, *_UNUSED))

    def add(self, name: str, scale: torch.Tensor) -> None:
        """Remember a scale that `owns` knows."""
        suffix = name[name.rfind(".") :]
        base = name.removesuffix(suffix) + ".weight"
        if suffix in _WEIGHT_SCALE:
            self._weights[base] = scale.float()
        elif suffix in _INPUT_SCALE:
            self._inputs[base] = scale.float()

    def without_scales(self, tensors: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that are no scales, and remember those that are."""
        for name, tensor in tensors:
            if self.owns(name):
                self.add(name, tensor)
            else:
                yield name, tensor

    def attach(self, weights: dict[str, torch.Tensor]) -> None:
        """Put the scales of all quantized linears beside their weights.

        Raises:
            ConfigError: scales are missing or have a shape that fits no weight.
        """
        for parameter in self._linears:
            weight_OI = weights[parameter.name]
            if weight_OI.dtype != FP8 or parameter.name + SCALE in weights:
                continue
            parts = [
                self._weight_scale(parameter, index) for index in range(len(parameter.sources))
            ]
            kinds = {part.dim() for part in parts}
            if len(kinds) > 1:
                raise ConfigError(f"{parameter.name} has scales of rows and of blocks")
            weights[parameter.name + SCALE] = torch.cat(parts).to(weight_OI.device)
            if self._quantization.has_static_inputs:
                weights[parameter.name + X_SCALE] = self._input_scale(parameter).to(
                    weight_OI.device
                )
        for name, tensor in weights.items():
            if tensor.dtype == FP8 and name + SCALE not in weights:
                raise ConfigError(f"{name} is quantized; only the linears of layers may be")

    def _weight_scale(self, parameter: Parameter, index: int) -> torch.Tensor:
        source, num_inputs = parameter.sources[index], parameter.row_shape[0]
        rows, columns = parameter.rows(index, self._share), parameter.columns(self._share)
        scale = _get(self._weights, source.name, "weight_scale")
        if scale.numel() == 1:
            return scale.reshape(1).expand(rows.stop - rows.start)
        if scale.numel() == source.num_rows and scale.shape[0] == source.num_rows:
            return scale.reshape(-1)[rows]
        blocks = (-(-source.num_rows // BLOCK), -(-num_inputs // BLOCK))
        if tuple(scale.shape) != blocks:
            raise ConfigError(
                f"the scale of {source.name} has shape {tuple(scale.shape)}; 1 number, "
                f"{source.num_rows} (one for each row) or {blocks} (one for each block) would do"
            )
        shape = rows.stop - rows.start, columns.stop - columns.start
        if shape[0] % BLOCK or shape[1] % BLOCK:
            raise ConfigError(
                f"{source.name} is {shape[0]} x {shape[1]}{_on_each(self._share)}; with a scale "
                f"for each block both must be multiples of {BLOCK}"
            )
        return scale[_blocks(rows), _blocks(columns)]

    def _input_scale(self, parameter: Parameter) -> torch.Tensor:
        # The parts share their input, which is quantized once: the widest range holds for all.
        scales = [_get(self._inputs, source.name, "input_scale") for source in parameter.sources]
        return torch.stack([scale.reshape(-1).amax() for scale in scales]).amax().reshape(1)


def assemble_quantized(
    spec: ModelSpec,
    tensors: NamedTensors,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    share: Share = WHOLE,
) -> dict[str, torch.Tensor]:
    """Stack a quantized checkpoint's tensors into the decoder's parameters and their scales.

    Raises:
        ConfigError: tensors or scales missing, unknown or of the wrong shape.
    """
    places = WeightPlaces(spec, dtype, device, share=share)
    scales = Scales(spec, quantization, share)
    places.fill(scales.without_scales(tensors))
    weights = places.finish()
    scales.attach(weights)
    return weights


def dequantize(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Turn quantized weights back into plain ones, in place: for devices without 8-bit products."""
    for name in [name for name in weights if name + SCALE in weights]:
        numbers_OI, scale = weights[name], weights.pop(name + SCALE)
        weights.pop(name + X_SCALE, None)
        if scale.dim() == 2:
            scale = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        else:
            scale = scale[:, None]
        weights[name] = (numbers_OI.float() * scale).to(dtype)


def _blocks(numbers: slice) -> slice:
    return slice(numbers.start // BLOCK, numbers.stop // BLOCK)


def _on_each(share: Share) -> str:
    return f" on each of {share.size} GPUs" if share.size > 1 else ""


def _get(scales: Mapping[str, torch.Tensor], name: str, what: str) -> torch.Tensor:
    scale = scales.get(name)
    if scale is None:
        raise ConfigError(f"the checkpoint lacks {name.removesuffix('weight')}{what}")
    return scale
