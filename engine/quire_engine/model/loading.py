"""From a model's files to the parameters of one rank, on its device."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from quire_engine.config import EngineConfig
from quire_engine.errors import ConfigError
from quire_engine.model.decoder import Weights
from quire_engine.model.dummy_weights import make_dummy
from quire_engine.model.quantization import Quantization, Scales, read_quantization
from quire_engine.model.share import WHOLE, Share
from quire_engine.model.spec import ModelSpec
from quire_engine.model.weight_places import NamedTensors, WeightPlaces
from quire_engine.model.weight_reading import read_safetensors


class WeightSource(Protocol):
    """What loading needs to know of a model; `model/source.py` resolves it."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def format(self) -> str: ...

    @property
    def weight_files(self) -> Sequence[Path]: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWeights:
    """A `WeightSource` and nothing else: what other processes must know of a resolved model."""

    config: Mapping[str, Any]
    format: str
    weight_files: Sequence[Path]
    eos_token_ids: Collection[int]

    @classmethod
    def of(cls, source: WeightSource) -> Self:
        return cls(
            config=dict(source.config),
            format=source.format,
            weight_files=tuple(source.weight_files),
            eos_token_ids=frozenset(source.eos_token_ids),
        )


def load_weights(
    config: EngineConfig,
    source: WeightSource,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    share: Share = WHOLE,
) -> Weights:
    """Read a rank's share of a model's weights, quantized if its config or the user's says so.

    Raises:
        ConfigError: weights that do not fit the config, or a quantization that they lack.
    """
    quantization, wanted = read_quantization(source.config), config.model.quantization
    if wanted == "compressed-tensors" and quantization is None:
        raise ConfigError(
            "quantization='compressed-tensors' needs a model that is quantized so; "
            "'fp8' quantizes any model when it is loaded"
        )
    quantizes = wanted == "fp8" or (quantization is not None and source.format == "dummy")
    if quantizes:
        quantization = quantization or Quantization(has_static_inputs=False)
    places = WeightPlaces(spec, dtype, device, share=share, quantizes=quantizes)
    scales = None if quantization is None else Scales(spec, quantization, share)
    if source.format == "safetensors":
        shows_progress = share.rank == 0
        read_safetensors(
            source.weight_files, places, scales, device=device, shows_progress=shows_progress
        )
    else:
        tensors = _tensors(config, source, spec, dtype, device)
        places.fill(tensors if scales is None else scales.without_scales(tensors))
    weights = places.finish()
    if scales is not None:
        scales.attach(weights)
    return weights


def _tensors(
    config: EngineConfig,
    source: WeightSource,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device | None,
) -> NamedTensors:
    if source.format == "dummy":
        return make_dummy(spec, dtype, config.model.seed, device)
    # Imported here: the gguf package is not needed for anything else.
    from quire_engine.model.gguf_weights import read_gguf

    return read_gguf(source.weight_files[0], spec)
