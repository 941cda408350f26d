"""From tensors as checkpoints name them to the fused parameters of the decoder.

A `Parameter` says its shape and from which checkpoint tensors it is stacked (q, k and v into
one, gate and up into one). Formats only have to offer `(name, tensor)` pairs in any order; shapes
and completeness are checked here, once for all of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch

from quire_engine.errors import ConfigError
from quire_engine.model.spec import ModelSpec

NamedTensors = Iterable[tuple[str, torch.Tensor]]

MAX_NAMES = 8
"""Names that an error message lists."""


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor, and how many rows of the parameter it fills."""

    name: str
    num_rows: int


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of the decoder, stacked along its rows from checkpoint tensors."""

    name: str
    sources: tuple[Source, ...]
    row_shape: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(source.num_rows for source in self.sources), *self.row_shape)


def parameters(spec: ModelSpec) -> list[Parameter]:
    """List the parameters of a decoder, with checkpoint names in the style of Hugging Face."""
    hidden = (spec.hidden_size,)
    found = [
        _matrix("embedding", hidden, [("model.embed_tokens", spec.vocab_size)]),
        _matrix("norm", (), [("model.norm", spec.hidden_size)]),
    ]
    if not spec.tie_word_embeddings:
        found.append(_matrix("head", hidden, [("lm_head", spec.vocab_size)]))
    for index in range(spec.num_layers):
        found += _layer_parameters(spec, f"layers.{index}.", f"model.layers.{index}.")
    return found


def _layer_parameters(spec: ModelSpec, ours: str, theirs: str) -> Iterator[Parameter]:
    attention, mlp, hidden = theirs + "self_attn.", theirs + "mlp.", spec.hidden_size
    qkv = [
        (attention + "q_proj", spec.q_size),
        (attention + "k_proj", spec.kv_size),
        (attention + "v_proj", spec.kv_size),
    ]
    out = [(attention + "o_proj", hidden)]
    width = spec.intermediate_size
    gate_up, down = (
        [(mlp + "gate_proj", width), (mlp + "up_proj", width)],
        [(mlp + "down_proj", hidden)],
    )
    yield _matrix(ours + "input_norm", (), [(theirs + "input_layernorm", hidden)])
    yield _matrix(ours + "mlp_norm", (), [(theirs + "post_attention_layernorm", hidden)])
    if spec.qk_norm:
        yield _matrix(ours + "q_norm", (), [(attention + "q_norm", spec.head_dim)])
        yield _matrix(ours + "k_norm", (), [(attention + "k_norm", spec.head_dim)])
    yield from _linear(ours + "qkv", hidden, qkv, has_bias=spec.qkv_bias)
    yield from _linear(ours + "out", spec.q_size, out, has_bias=spec.attention_out_bias)
    yield from _linear(ours + "gate_up", hidden, gate_up, has_bias=spec.mlp_bias)
    yield from _linear(ours + "down", width, down, has_bias=spec.mlp_bias)


def _matrix(name: str, row_shape: tuple[int, ...], parts: list[tuple[str, int]]) -> Parameter:
    sources = tuple(Source(f"{part}.weight", num_rows) for part, num_rows in parts)
    return Parameter(f"{name}.weight", sources, row_shape)


def _linear(
    name: str, num_inputs: int, parts: list[tuple[str, int]], *, has_bias: bool
) -> Iterator[Parameter]:
    yield _matrix(name, (num_inputs,), parts)
    if has_bias:
        yield Parameter(f"{name}.bias", tuple(Source(f"{part}.bias", n) for part, n in parts))


def num_parameters(spec: ModelSpec) -> int:
    """Return how many numbers a model has."""
    return sum(prod(parameter.shape) for parameter in parameters(spec))


def assemble(
    spec: ModelSpec,
    tensors: NamedTensors,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> dict[str, torch.Tensor]:
    """Stack checkpoint tensors into the decoder's parameters on `device`, converted to `dtype`.

    Raises:
        ConfigError: tensors missing, unknown or of the wrong shape; the message names them.
    """
    slots: dict[str, tuple[Parameter, slice]] = {}
    for parameter in parameters(spec):
        start = 0
        for source in parameter.sources:
            slots[source.name] = parameter, slice(start, start + source.num_rows)
            start += source.num_rows
    weights: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors:
        slot = slots.pop(name, None)
        if slot is not None:
            _fill(weights, *slot, name, tensor, dtype, device)
        elif not _is_ignorable(spec, name):
            unknown.append(name)
    _check_names("lacks", list(slots))
    _check_names("has unknown", unknown)
    return weights


def _fill(
    weights: dict[str, torch.Tensor],
    parameter: Parameter,
    rows: slice,
    name: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device | None,
) -> None:
    expected = (rows.stop - rows.start, *parameter.row_shape)
    if tuple(tensor.shape) != expected:
        raise ConfigError(
            f"tensor {name} has shape {tuple(tensor.shape)}; the config asks for {expected}"
        )
    # Quantized numbers mean nothing without their scales, and stay what they are.
    is_quantized = tensor.dtype == torch.float8_e4m3fn
    if parameter.name not in weights:
        stored = tensor.dtype if is_quantized else dtype
        weights[parameter.name] = torch.empty(parameter.shape, dtype=stored, device=device)
    elif is_quantized != (weights[parameter.name].dtype == torch.float8_e4m3fn):
        raise ConfigError(
            f"tensor {name} is {tensor.dtype}, other parts of {parameter.name} are not; "
            "either all or none may be quantized"
        )
    weights[parameter.name][rows].copy_(tensor)


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
