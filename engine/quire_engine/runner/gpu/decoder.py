"""The decoder of a `ModelSpec` on a GPU, as launches of fused kernels into memory of its own.

Legend: T tokens, S lines that are sampled, E hidden size, H query heads, N key/value heads, D head
dim, V vocabulary, W a rank's part of it, L lines of one part of S.

Nothing here waits for the GPU, so a forward pass can be captured as it is.

Where ranks share the model, `ModelSpec` describes the layers of one. Each computes a part of what
attention and MLP add to the residual, and a sum over the ranks makes it whole again.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional

from quire_engine.kernels.gpu.linear import GpuLinear, GpuMlp
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.qkv import QkvProjection
from quire_engine.kernels.gpu.quantize import take_weight
from quire_engine.kernels.gpu.rotary import CacheLayer, make_cos_sin
from quire_engine.model.decoder import Weights
from quire_engine.model.share import Share
from quire_engine.model.spec import LayerSpec, ModelSpec, RopeSpec
from quire_engine.runner.group.group import ALONE, Group

GATHERED_LINES = 256
"""Lines whose logits come from all ranks at a time, since the parts take memory of their own."""

Attend = Callable[[int, torch.Tensor, torch.Tensor], None]
"""(layer, heads (T, H or more, D), out (T, H, D)): attends with queries whose keys are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a forward pass must know of its tokens."""

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_T: torch.Tensor


class Workspace:
    """Activations of the longest step, shared by all layers and all graphs."""

    def __init__(
        self,
        spec: ModelSpec,
        max_num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        def empty(width: int) -> torch.Tensor:
            return torch.empty(max_num_tokens, width, dtype=dtype, device=device)

        share, self._group = group.share, group
        # The first of two ranks adds its part to the residual before the sum, which costs nothing.
        # Of more ranks each would round the residual once more.
        self._sums_residual = share.size <= 2
        self.adds_part = self._sums_residual and share.rank == 0
        """A rank's part is added to what is there; else it is written over it."""
        self._part_TE = group.summable(max_num_tokens, spec.hidden_size, dtype, device)
        self.residual_TE = self._part_TE if self._sums_residual else empty(spec.hidden_size)
        self.qkv_T = empty(spec.q_size + 2 * spec.kv_size)
        self.attended_T = empty(spec.q_size)

    def part_of(self, residual_TE: torch.Tensor) -> torch.Tensor:
        """Return where this rank's part goes of what is added to a residual."""
        return residual_TE if self._sums_residual else self._part_TE[: residual_TE.shape[0]]

    def add_parts(self, part_TE: torch.Tensor, residual_TE: torch.Tensor) -> None:
        """Add the parts of all ranks to a residual, the same bits on each."""
        self._group.add_up(part_TE)
        if not self._sums_residual:
            residual_TE.add_(part_TE)


class GpuDecoderLayer:
    """Attention and MLP, each on normed input, each added to the residual in place."""

    def __init__(
        self,
        spec: ModelSpec,
        layer: LayerSpec,
        weights: Weights,
        index: int,
        cos_sin_PR: torch.Tensor,
        *,
        batch_invariant: bool,
    ) -> None:
        prefix = f"layers.{index}."

        def linear(name: str) -> GpuLinear:
            weight = take_weight(weights, f"{prefix}{name}.weight")
            bias = weights.pop(f"{prefix}{name}.bias", None)
            return GpuLinear(weight, bias, batch_invariant=batch_invariant)

        def norm(name: str) -> Norm:
            return Norm(weights.pop(f"{prefix}{name}.weight"), spec.norm_eps)

        self._spec, self._index = spec, index
        self._qkv = QkvProjection(
            linear("qkv"),
            norm("input_norm"),
            cos_sin_PR,
            num_heads=spec.num_heads,
            q_norm=norm("q_norm") if spec.qk_norm else None,
            k_norm=norm("k_norm") if spec.qk_norm else None,
        )
        self._mlp_norm, self._out = norm("mlp_norm"), linear("out")
        self._mlp = GpuMlp(linear("gate_up"), linear("down"), width=spec.intermediate_size)

    def attend(self, space: Workspace, num_tokens: int, attend: Attend) -> None:
        """Attend from all tokens."""
        self._attend(space.qkv_T[:num_tokens], space.attended_T[:num_tokens], attend)

    def finish(self, space: Workspace, num_tokens: int) -> None:
        """Add what attention gave, and the MLP, to the residual of all tokens."""
        self._finish(space, space.attended_T[:num_tokens], space.residual_TE[:num_tokens])

    def finish_lines(
        self,
        space: Workspace,
        num_tokens: int,
        attend: Attend,
        lines_S: torch.Tensor,
        residual_SE: torch.Tensor,
    ) -> None:
        """Attend from some of the tokens, and write their residual at the end of the layer."""
        qkv_T, num_lines, q_size = space.qkv_T[:num_tokens], lines_S.shape[0], self._spec.q_size
        torch.index_select(space.residual_TE, 0, lines_S, out=residual_SE)
        q_S = space.attended_T[:num_lines]
        torch.index_select(qkv_T[:, :q_size], 0, lines_S, out=q_S)
        # Keys and values are in the cache by now, and the queries copied: this memory is free.
        attended_S = qkv_T.view(-1)[: num_lines * q_size].view(num_lines, q_size)
        self._attend(q_S, attended_S, attend)
        self._finish(space, attended_S, residual_SE)

    def project(self, space: Workspace, tokens: Tokens, cache: CacheLayer) -> None:
        """Make rotated queries, keys and values of all tokens, and store the latter two."""
        num_tokens = tokens.ids_T.shape[0]
        self._qkv(
            space.residual_TE[:num_tokens],
            space.qkv_T[:num_tokens],
            tokens.positions_T,
            tokens.slots_T,
            cache,
        )

    def _attend(self, heads_T: torch.Tensor, out_T: torch.Tensor, attend: Attend) -> None:
        spec, num_tokens = self._spec, heads_T.shape[0]
        attend(
            self._index,
            heads_T.view(num_tokens, -1, spec.head_dim),
            out_T.view(num_tokens, spec.num_heads, spec.head_dim),
        )

    def _finish(
        self, space: Workspace, attended_T: torch.Tensor, residual_TE: torch.Tensor
    ) -> None:
        part_TE = space.part_of(residual_TE)
        if space.adds_part:
            self._out.add_to(attended_T, part_TE)
            space.add_parts(part_TE, residual_TE)
            self._mlp.add_to(residual_TE, norm=self._mlp_norm)
        else:
            self._out(attended_T, part_TE)
            space.add_parts(part_TE, residual_TE)
            self._mlp(residual_TE, part_TE, norm=self._mlp_norm)
        space.add_parts(part_TE, residual_TE)


class GpuDecoder:
    """Token ids to hidden states, and hidden states to logits. Consumes `weights`."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        max_len: int,
        max_num_tokens: int,
        batch_invariant: bool = False,
        group: Group = ALONE,
    ) -> None:
        self.spec, self._group = spec, group
        self._embedding_VE = weights.pop("embedding.weight")
        dtype, device = self._embedding_VE.dtype, self._embedding_VE.device
        ropes: dict[RopeSpec, torch.Tensor] = {
            rope: make_cos_sin(rope, max_len, dtype, device)
            for rope in dict.fromkeys(layer.rope for layer in spec.layers)
        }
        self._kinds = [_kind(layer, index, weights) for index, layer in enumerate(spec.layers)]
        self._layers = [
            GpuDecoderLayer(
                spec, layer, weights, index, ropes[layer.rope], batch_invariant=batch_invariant
            )
            for index, layer in enumerate(spec.layers)
        ]
        self._norm = Norm(weights.pop("norm.weight"), spec.norm_eps)
        head_WE = weights.pop("head.weight", None)
        if head_WE is None:
            head_WE = _head_of(self._embedding_VE, group.share)
        self._head = GpuLinear(head_WE, batch_invariant=batch_invariant)
        self._head_width = head_WE.shape[0]
        self._space = Workspace(spec, max_num_tokens, dtype, device, group)
        assert not weights, f"weights that nothing uses: {', '.join(weights)}"

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding_VE.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding_VE.device

    def forward(self, tokens: Tokens, caches: list[CacheLayer], attend: Attend) -> torch.Tensor:
        """Return the hidden state of every token, (T, E), not yet normed for the head.

        It lives until the next call.
        """
        num_tokens = tokens.ids_T.shape[0]
        for index, layer in enumerate(self._layers):
            self.piece(index, tokens, caches)
            layer.attend(self._space, num_tokens, attend)
        self._layers[-1].finish(self._space, num_tokens)
        return self._space.residual_TE[:num_tokens]

    @property
    def num_pieces(self) -> int:
        """Pieces of a forward pass: one before the attention of each layer."""
        return len(self._layers)

    def piece(self, index: int, tokens: Tokens, caches: list[CacheLayer]) -> None:
        """Compute what lies between the attention of a layer and that of the one before it."""
        if index == 0:
            self._embed(tokens)
        else:
            self._layers[index - 1].finish(self._space, tokens.ids_T.shape[0])
        self._layers[index].project(self._space, tokens, caches[index])

    def forward_lines(
        self,
        num_tokens: int,
        piece: Callable[[int], None],
        attend: Attend,
        attend_lines: Attend,
        lines_S: torch.Tensor,
        out_SE: torch.Tensor,
    ) -> None:
        """Write the hidden states of some lines only, as `forward` returns those of all.

        `piece` runs `piece`, which may be for more tokens, or captured. What nobody reads is not
        computed: in the last layer all tokens get keys and values, but only `lines_S` queries,
        through `attend_lines`, and what follows them.
        """
        *layers, last = self._layers
        for index, layer in enumerate(layers):
            piece(index)
            layer.attend(self._space, num_tokens, attend)
        piece(len(layers))
        if lines_S.shape[0]:
            last.finish_lines(self._space, num_tokens, attend_lines, lines_S, out_SE)

    @contextmanager
    def few_layers(self) -> Iterator[None]:
        """Leave out layers whose like is there: those that are left launch every kernel.

        The last one stays, since of it `forward_lines` computes less than of the others.
        """
        layers = self._layers
        *others, last = layers
        self._layers = [*dict(zip(self._kinds, others, strict=False)).values(), last]
        try:
            yield
        finally:
            self._layers = layers

    def _embed(self, tokens: Tokens) -> None:
        hidden_TE = self._space.residual_TE[: tokens.ids_T.shape[0]]
        torch.index_select(self._embedding_VE, 0, tokens.ids_T, out=hidden_TE)

    def logits(self, hidden_SE: torch.Tensor, out_SV: torch.Tensor) -> None:
        """Write the logits of some hidden states, in the type of `out_SV`."""
        if self._group.share.size == 1:
            self._head(hidden_SE, out_SV, norm=self._norm)
            return
        for start in range(0, hidden_SE.shape[0], GATHERED_LINES):
            lines = slice(start, start + GATHERED_LINES)
            hidden_LE, out_LV = hidden_SE[lines], out_SV[lines]
            own_LW = out_LV.new_empty((hidden_LE.shape[0], self._head_width))
            self._head(hidden_LE, own_LW, norm=self._norm)
            self._group.gather(own_LW, out_LV)


def _kind(layer: LayerSpec, index: int, weights: Weights) -> Hashable:
    """Return what the kernels of a layer depend on."""
    prefix = f"layers.{index}."
    shapes = {
        (name.removeprefix(prefix), weight.dtype, weight.shape)
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
    return layer, frozenset(shapes)


def _head_of(embedding_VE: torch.Tensor, share: Share) -> torch.Tensor:
    """Return a rank's part of a head that is the embedding, padded where it has fewer rows."""
    part_WE = embedding_VE[share.part(embedding_VE.shape[0])]
    num_missing = share.width(embedding_VE.shape[0]) - part_WE.shape[0]
    return functional.pad(part_WE, (0, 0, 0, num_missing)) if num_missing else part_WE
