"""Where the tensors of a checkpoint go: into the fused parameters of one rank, each part once.

Formats offer tensors in any order, whole or in parts; names, shapes and completeness are checked
here, once for all of them.

Legend: O outputs.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from quire_engine.errors import ConfigError
from quire_engine.model.fp8 import FP8, SCALE, quantize_by_row
from quire_engine.model.share import WHOLE, Share
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weights import Cut, Parameter, parameters

NamedTensors = Iterable[tuple[str, torch.Tensor]]

MAX_NAMES = 8
"""Names that an error message lists."""

_LINEAR = re.compile(r"layers\.\d+\.(qkv|out|gate_up|down)\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where `tensor[rows, columns]` of one checkpoint tensor goes."""

    rows: slice
    columns: slice
    """Of a vector, which is one column, 0 to 1."""
    target: torch.Tensor
    scale_O: torch.Tensor | None = None
    """Where the scales go of a tensor that is quantized on its way; None: it is not."""

    def is_copy_of(self, dtype: torch.dtype) -> bool:
        """Tell whether numbers of this type go into the target bit by bit."""
        return self.scale_O is None and self.target.dtype == dtype

    def write(self, part: torch.Tensor, first_row: int = 0) -> None:
        """Write some rows of what belongs here; `first_row` counts from the target's first."""
        rows = slice(first_row, first_row + part.shape[0])
        if self.scale_O is None:
            self.target[rows].copy_(part, non_blocking=True)
        else:
            numbers, scale_O = quantize_by_row(part.to(self.target.device))
            self.target[rows].copy_(numbers)
            self.scale_O[rows].copy_(scale_O)


class WeightPlaces:
    """The parameters of one rank, empty at first, and what is still missing of them."""

    def __init__(
        self,
        spec: ModelSpec,
        dtype: torch.dtype,
        device: torch.device | None = None,
        *,
        share: Share = WHOLE,
        quantizes: bool = False,
    ) -> None:
        """Make places of type `dtype`; `quantizes`: linears that are not in 8 bits become so."""
        self._spec, self._dtype, self._device, self._share = spec, dtype, device, share
        self._quantized = {item.name for item in linears(spec)} if quantizes else set()
        self._missing = {
            source.name: (parameter, index)
            for parameter in parameters(spec)
            for index, source in enumerate(parameter.sources)
        }
        self._unknown: list[str] = []
        self._weights: dict[str, torch.Tensor] = {}

    def find(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Place | None:
        """Return where a tensor of the checkpoint goes; None: this rank has no use for it.

        Raises:
            ConfigError: it has another shape than the config says, or another type than its peers.
        """
        parameter, index = self._missing.pop(name, (None, 0))
        if parameter is None:
            if not _is_ignorable(self._spec, name):
                self._unknown.append(name)
            return None
        expected = (parameter.sources[index].num_rows, *parameter.row_shape)
        if shape != expected:
            raise ConfigError(f"tensor {name} has shape {shape}; the config asks for {expected}")
        if parameter.cut is Cut.FIRST and self._share.rank:
            return None
        return self._place(parameter, index, dtype)

    def fill(self, tensors: NamedTensors) -> None:
        """Take a rank's part of each tensor.

        Raises:
            ConfigError: as `find`.
        """
        for name, tensor in tensors:
            place = self.find(name, tensor.dtype, tuple(tensor.shape))
            if place is not None:
                part = tensor[place.rows]
                place.write(part if tensor.dim() == 1 else part[:, place.columns])

    def finish(self) -> dict[str, torch.Tensor]:
        """Return the parameters by name.

        Raises:
            ConfigError: tensors were missing or unknown; the message names them.
        """
        _check_names("lacks", list(self._missing))
        _check_names("has unknown", self._unknown)
        return self._weights

    def _place(self, parameter: Parameter, index: int, dtype: torch.dtype) -> Place:
        weight, share = self._allocated(parameter, index, dtype), self._share
        rows = parameter.rows(index, share)
        start = sum(parameter.num_rows(before, share) for before in range(index))
        lines = slice(start, start + rows.stop - rows.start)
        scale_O = None
        if parameter.name in self._quantized and dtype != FP8:
            scale_O = self._weights[parameter.name + SCALE][lines]
        columns = parameter.columns(share)
        return Place(rows=rows, columns=columns, target=weight[lines], scale_O=scale_O)

    def _allocated(self, parameter: Parameter, index: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a parameter's memory, which its first tensor allocates."""
        name = parameter.name
        # Quantized numbers mean nothing without their scales, and stay what they are.
        is_quantized = dtype == FP8 or name in self._quantized
        if name not in self._weights:
            stored = FP8 if is_quantized else self._dtype
            weight = torch.empty(parameter.shape_of(self._share), dtype=stored, device=self._device)
            self._weights[name] = weight
            _clear_padding(parameter, self._share, weight)
            if name in self._quantized and dtype != FP8:
                self._weights[name + SCALE] = torch.empty(
                    weight.shape[0], dtype=torch.float32, device=self._device
                )
        weight = self._weights[name]
        has_scales = name + SCALE in self._weights
        is_other = has_scales == (dtype == FP8) if name in self._quantized else False
        if is_other or is_quantized != (weight.dtype == FP8):
            raise ConfigError(
                f"tensor {parameter.sources[index].name} is {dtype}, other parts of {name} are "
                "not; either all or none may be quantized"
            )
        return weight


def assemble(
    spec: ModelSpec,
    tensors: NamedTensors,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    share: Share = WHOLE,
) -> dict[str, torch.Tensor]:
    """Stack checkpoint tensors into the decoder's parameters on `device`, converted to `dtype`.

    Raises:
        ConfigError: tensors missing, unknown or of the wrong shape; the message names them.
    """
    places = WeightPlaces(spec, dtype, device, share=share)
    places.fill(tensors)
    return places.finish()


def linears(spec: ModelSpec) -> list[Parameter]:
    """List the weights of a decoder's linear layers, which may be quantized."""
    return [parameter for parameter in parameters(spec) if _LINEAR.fullmatch(parameter.name)]


def _clear_padding(parameter: Parameter, share: Share, weight: torch.Tensor) -> None:
    start = 0
    for index in range(len(parameter.sources)):
        rows, end = parameter.rows(index, share), start + parameter.num_rows(index, share)
        weight[start + rows.stop - rows.start : end].zero_()
        start = end


def _is_ignorable(spec: ModelSpec, name: str) -> bool:
    """Tell whether a tensor says nothing new: rope tables of old checkpoints, a tied head."""
    if name.endswith((".rotary_emb.inv_freq", "rope_freqs.weight")):
        return True
    return spec.tie_word_embeddings and name == "lm_head.weight"


def _check_names(what: str, names: list[str]) -> None:
    if not names:
        return
    shown = ", ".join(names[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    raise ConfigError(f"the checkpoint {what} {len(names)} tensors: {shown}{more}")
