"""The one decoder: executes any `ModelSpec`.

Legend: T tokens, E hidden size, H query heads, N key/value heads, D head dim, V vocabulary.

The decoder knows nothing of sequences or caches. What it is given as `attend` stores the new keys
and values and returns the attention's output; everything else treats tokens one by one.
"""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from quire_engine.model.layers import Linear, RmsNorm, make_linear
from quire_engine.model.rope import RopeTable
from quire_engine.model.spec import LayerSpec, ModelSpec

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, heads (T, H + 2N, D): queries, keys, values) -> attention's output (T, H * D)."""

Turns = Mapping[RopeTable, tuple[torch.Tensor, torch.Tensor]]
Weights = dict[str, torch.Tensor]


class Mlp:
    """silu(gate) * up, projected back; the residual is added on the way out."""

    def __init__(self, spec: ModelSpec, weights: Weights, prefix: str) -> None:
        width, weight = spec.intermediate_size, weights.pop(prefix + "gate_up.weight")
        bias = weights.pop(prefix + "gate_up.bias", None)
        gate_bias, up_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        # Two products with their follow-up fused beat one product and two passes over its result.
        self._gate = make_linear(weight[:width], gate_bias)
        self._up = make_linear(weight[width:], up_bias)
        self._down = _take_linear(weights, prefix + "down")

    def __call__(self, x_TE: torch.Tensor, residual_TE: torch.Tensor) -> torch.Tensor:
        return self._down.plus(self._up.times(x_TE, self._gate.silu(x_TE)), residual_TE)


class DecoderLayer:
    """Attention and MLP, each on normed input, each added to the residual."""

    def __init__(
        self, spec: ModelSpec, layer: LayerSpec, weights: Weights, index: int, rope: RopeTable
    ) -> None:
        prefix = f"layers.{index}."
        self._index, self._rope = index, rope
        self._num_rotated = spec.num_heads + spec.num_kv_heads
        self._num_heads, self._head_dim = spec.num_heads, spec.head_dim
        self._input_norm = RmsNorm(weights.pop(prefix + "input_norm.weight"), spec.norm_eps)
        self._mlp_norm = RmsNorm(weights.pop(prefix + "mlp_norm.weight"), spec.norm_eps)
        self._qkv = _take_linear(weights, prefix + "qkv")
        self._out = _take_linear(weights, prefix + "out")
        self._q_norm = self._k_norm = None
        if spec.qk_norm:
            self._q_norm = RmsNorm(weights.pop(prefix + "q_norm.weight"), spec.norm_eps)
            self._k_norm = RmsNorm(weights.pop(prefix + "k_norm.weight"), spec.norm_eps)
        self._mlp = Mlp(spec, weights, prefix)

    def __call__(self, x_TE: torch.Tensor, turns: Turns, attend: Attend) -> torch.Tensor:
        heads = self._qkv(self._input_norm(x_TE)).view(x_TE.shape[0], -1, self._head_dim)
        rotated = heads[:, : self._num_rotated]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
            q.copy_(self._q_norm(q))
            k.copy_(self._k_norm(k))
        self._rope.rotate_(rotated, turns[self._rope])
        x_TE = self._out.plus(attend(self._index, heads), x_TE)
        return self._mlp(self._mlp_norm(x_TE), x_TE)


class Decoder:
    """Token ids to hidden states, and hidden states to logits. Consumes `weights`."""

    def __init__(self, spec: ModelSpec, weights: Weights, *, max_len: int) -> None:
        self.spec = spec
        self._embedding_VE = weights.pop("embedding.weight")
        dtype, device = self._embedding_VE.dtype, self._embedding_VE.device
        ropes = {
            rope: RopeTable(rope, max_len, dtype, device)
            for rope in dict.fromkeys(layer.rope for layer in spec.layers)
        }
        self._ropes = list(ropes.values())
        self._layers = [
            DecoderLayer(spec, layer, weights, index, ropes[layer.rope])
            for index, layer in enumerate(spec.layers)
        ]
        self._norm = RmsNorm(weights.pop("norm.weight"), spec.norm_eps)
        self._head = make_linear(weights.pop("head.weight", self._embedding_VE))
        assert not weights, f"weights that nothing uses: {', '.join(weights)}"

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding_VE.dtype

    @property
    def device(self) -> torch.device:
        return self._embedding_VE.device

    def forward(
        self, token_ids_T: torch.Tensor, positions_T: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return the hidden state of every token, (T, E), not yet normed for the head."""
        x_TE = functional.embedding(token_ids_T, self._embedding_VE)
        turns = {rope: rope.at(positions_T) for rope in self._ropes}
        for layer in self._layers:
            x_TE = layer(x_TE, turns, attend)
        return x_TE

    def logits(self, hidden_TE: torch.Tensor) -> torch.Tensor:
        """Return the logits (T, V) of some hidden states, in the model's type."""
        return self._head(self._norm(hidden_TE))


def _take_linear(weights: Weights, name: str) -> Linear:
    return make_linear(weights.pop(name + ".weight"), weights.pop(name + ".bias", None))
