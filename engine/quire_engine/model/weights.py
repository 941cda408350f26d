"""The fused parameters of the decoder, in terms of tensors as checkpoints name them.

A `Parameter` says its shape, from which checkpoint tensors it is stacked (q, k and v into one,
gate and up into one), and how it is divided where several devices share a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import prod

from quire_engine.model.share import Share
from quire_engine.model.spec import ModelSpec


class Cut(Enum):
    """What of a checkpoint tensor a rank has, where several share a model."""

    NONE = "all"
    ROWS = "some rows: it computes some of the outputs"
    COLUMNS = "some columns: its outputs are a part of a sum over the ranks"
    FIRST = "all, but for the first rank alone: the bias of a sum, added once"


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
    cut: Cut = Cut.NONE

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (sum(source.num_rows for source in self.sources), *self.row_shape)

    def num_rows(self, index: int, share: Share) -> int:
        """Return how many rows a rank has of its source number `index`, padding included."""
        num_rows = self.sources[index].num_rows
        return share.width(num_rows) if self.cut is Cut.ROWS else num_rows

    def rows(self, index: int, share: Share) -> slice:
        """Return which rows of its source number `index` a rank has."""
        num_rows = self.sources[index].num_rows
        return share.part(num_rows) if self.cut is Cut.ROWS else slice(0, num_rows)

    def columns(self, share: Share) -> slice:
        """Return which columns of its sources a rank has; a vector is one column."""
        num_columns = prod(self.row_shape)
        return share.part(num_columns) if self.cut is Cut.COLUMNS else slice(0, num_columns)

    def shape_of(self, share: Share) -> tuple[int, ...]:
        """Return the shape of a rank's part."""
        num_rows = sum(self.num_rows(index, share) for index in range(len(self.sources)))
        columns = self.columns(share)
        return (num_rows, columns.stop - columns.start) if self.row_shape else (num_rows,)


def parameters(spec: ModelSpec) -> list[Parameter]:
    """List the parameters of a decoder, with checkpoint names in the style of Hugging Face."""
    hidden = (spec.hidden_size,)
    found = [
        _matrix("embedding", hidden, [("model.embed_tokens", spec.vocab_size)]),
        _matrix("norm", (), [("model.norm", spec.hidden_size)]),
    ]
    if not spec.tie_word_embeddings:
        found.append(_matrix("head", hidden, [("lm_head", spec.vocab_size)], Cut.ROWS))
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
    yield from _linear(ours + "qkv", hidden, qkv, Cut.ROWS, has_bias=spec.qkv_bias)
    yield from _linear(
        ours + "out", spec.q_size, out, Cut.COLUMNS, has_bias=spec.attention_out_bias
    )
    yield from _linear(ours + "gate_up", hidden, gate_up, Cut.ROWS, has_bias=spec.mlp_bias)
    yield from _linear(ours + "down", width, down, Cut.COLUMNS, has_bias=spec.mlp_bias)


def _matrix(
    name: str, row_shape: tuple[int, ...], parts: list[tuple[str, int]], cut: Cut = Cut.NONE
) -> Parameter:
    sources = tuple(Source(f"{part}.weight", num_rows) for part, num_rows in parts)
    return Parameter(f"{name}.weight", sources, row_shape, cut)


def _linear(
    name: str, num_inputs: int, parts: list[tuple[str, int]], cut: Cut, *, has_bias: bool
) -> Iterator[Parameter]:
    yield _matrix(name, (num_inputs,), parts, cut)
    if has_bias:
        sources = tuple(Source(f"{part}.bias", num_rows) for part, num_rows in parts)
        yield Parameter(f"{name}.bias", sources, (), Cut.FIRST if cut is Cut.COLUMNS else cut)


def num_parameters(spec: ModelSpec) -> int:
    """Return how many numbers a model has."""
    return sum(prod(parameter.shape) for parameter in parameters(spec))
