"""Linear layers of the GPU decoder, with what comes before and after them fused in.

Legend: T tokens, E hidden size, I inputs, O outputs, H half of O.
"""

from dataclasses import dataclass

import torch

from quire_engine.kernels.gpu.activation import silu_mul
from quire_engine.kernels.gpu.linear_gemv import GemvTiles, gemv
from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles, skinny
from quire_engine.kernels.gpu.linear_weights import LinearWeight, PlainWeight, QuantizedWeight
from quire_engine.kernels.gpu.norm import Norm
from quire_engine.kernels.gpu.quantize import Fp8Weight
from quire_engine.kernels.gpu.tables import LibraryTable, Product, Tiles, TileTable, shipped_table


@dataclass(frozen=True, slots=True, eq=False)
class GemvParts:
    """A weight (O, I), its scales and bias, and the tiles that suit it."""

    weight_OI: torch.Tensor
    tiles: GemvTiles
    scale: torch.Tensor | None = None
    bias_O: torch.Tensor | None = None


class GpuLinear:
    """y = norm(x) W^T + b, and what can be done to y before it is written.

    Few rows of x go through kernels of our own, many through the vendor's library; which, is
    decided by the number of rows alone. Nothing waits for the GPU, so that every method can be
    captured in a CUDA graph. Products of one linear must not run at the same time.
    """

    def __init__(
        self,
        weight: torch.Tensor | Fp8Weight,
        bias_O: torch.Tensor | None = None,
        *,
        batch_invariant: bool = False,
        table: TileTable | None = None,
    ) -> None:
        """Take a weight (O, I); batch-invariant, a row of y is the same among any other rows."""
        self._weight: LinearWeight
        if isinstance(weight, Fp8Weight):
            self._weight = QuantizedWeight(weight)
        else:
            self._weight = PlainWeight(weight)
        self._bias_O, self._batch_invariant = bias_O, batch_invariant
        numbers_OI, scale = self._weight.numbers_OI, self._weight.scale
        if table is None:
            table = shipped_table() if numbers_OI.is_cuda else LibraryTable()
        self._table = table
        self._products = tuple(
            Product(
                num_inputs=numbers_OI.shape[1],
                num_rows=numbers_OI.shape[0],
                gated=gated,
                element_bytes=numbers_OI.element_size(),
                scale_dims=0 if scale is None else scale.dim(),
            )
            for gated in (False, True)
        )
        # As many counters as the narrowest tiles could need; kernels leave them at zero.
        self._counters = torch.zeros(
            numbers_OI.shape[0] // 16 + 1, dtype=torch.int32, device=numbers_OI.device
        )

    def __call__(
        self, x_TI: torch.Tensor, out_TO: torch.Tensor, *, norm: Norm | None = None
    ) -> None:
        """Write y."""
        tiles = self._choose(x_TI.shape[0])
        if tiles is None:
            self._weight.multiply(self._weight.factor(x_TI, norm), self._bias_O, out_TO)
        else:
            self._run(tiles, x_TI, out_TO, norm=norm)

    def add_to(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> None:
        """Add y to the residual in place."""
        tiles = self._choose(x_TI.shape[0])
        if tiles is None:
            self._weight.add_product(self._weight.factor(x_TI, None), self._bias_O, residual_TO)
        else:
            self._run(tiles, x_TI, residual_TO, adds=True)

    def gated(self, x_TI: torch.Tensor, out_TH: torch.Tensor, *, norm: Norm | None = None) -> None:
        """Write silu of the first half of y times the second half."""
        tiles = self._choose(x_TI.shape[0], gated=True)
        if tiles is None:
            y_TO = x_TI.new_empty((x_TI.shape[0], self._products[0].num_rows))
            self._weight.multiply(self._weight.factor(x_TI, norm), self._bias_O, y_TO)
            silu_mul(y_TO, out_TH)
        else:
            self._run(tiles, x_TI, out_TH, norm=norm, gated=True)

    def gemv_parts(self, num_tokens: int) -> GemvParts | None:
        """Return what a GEMV with an end of its own needs; None where rows take another way."""
        tiles = self._choose(num_tokens)
        if not isinstance(tiles, GemvTiles):
            return None
        weight = self._weight
        return GemvParts(weight.numbers_OI, tiles, scale=weight.scale, bias_O=self._bias_O)

    def _choose(self, num_tokens: int, *, gated: bool = False) -> Tiles | None:
        if self._batch_invariant:
            return self._weight.invariant_tiles
        tiles = self._table.choose(self._products[gated], num_tokens)
        return self._weight.library_tiles if tiles is None else tiles

    def _run(
        self,
        tiles: Tiles,
        x_TI: torch.Tensor,
        out: torch.Tensor,
        *,
        norm: Norm | None = None,
        adds: bool = False,
        gated: bool = False,
    ) -> None:
        if isinstance(tiles, GemvTiles):
            gemv(
                x_TI[0],
                self._weight.numbers_OI,
                out[0],
                tiles,
                scale=self._weight.scale,
                bias_O=self._bias_O,
                norm=norm,
                adds=adds,
                gated=gated,
            )
        else:
            self._multiply_tiles(tiles, x_TI, out, norm=norm, adds=adds, gated=gated)

    def _multiply_tiles(
        self,
        tiles: SkinnyTiles,
        x_TI: torch.Tensor,
        out: torch.Tensor,
        *,
        norm: Norm | None,
        adds: bool,
        gated: bool,
    ) -> None:
        x = self._weight.factor(x_TI, norm)
        skinny(
            x.rows_TI,
            self._weight.numbers_OI,
            out,
            tiles,
            self._counters,
            x_scale=x.scale,
            scale=self._weight.scale,
            bias_O=self._bias_O,
            adds=adds,
            gated=gated,
        )


class GpuMlp:
    """silu(gate) * up, projected back."""

    def __init__(self, gate_up: GpuLinear, down: GpuLinear, *, width: int) -> None:
        """Take the two linears, and how many numbers pass from the first to the second."""
        self._gate_up, self._down, self._width = gate_up, down, width

    def add_to(self, residual_TE: torch.Tensor, *, norm: Norm) -> None:
        """Add the MLP of the residual's norm to the residual, in place."""
        self._down.add_to(self._hidden(residual_TE, norm), residual_TE)

    def __call__(
        self, x_TE: torch.Tensor, out_TE: torch.Tensor, *, norm: Norm | None = None
    ) -> None:
        """Write the MLP of x, or of x's norm."""
        self._down(self._hidden(x_TE, norm), out_TE)

    def _hidden(self, x_TE: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        hidden_TI = x_TE.new_empty((x_TE.shape[0], self._width))
        self._gate_up.gated(x_TE, hidden_TI, norm=norm)
        return hidden_TI
