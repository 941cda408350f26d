"""Linear layers of the GPU decoder, with what comes before and after them fused in.

Legend: T tokens, I inputs, O outputs, H half of O.
"""

import torch

from quire_engine.kernels.gpu.activation import silu_mul
from quire_engine.kernels.gpu.linear_gemv import GemvTiles, gemv
from quire_engine.kernels.gpu.linear_skinny import skinny
from quire_engine.kernels.gpu.norm import Norm, add_rms_norm
from quire_engine.kernels.gpu.tables import Product, Tiles, TileTable, shipped_table


class GpuLinear:
    """y = norm(x) W^T + b, and what can be done to y before it is written.

    Few rows of x go through kernels of our own, many through the vendor's library; which, is
    decided by the number of rows alone. Nothing waits for the GPU, so that every method can be
    captured in a CUDA graph. Products of one linear must not run at the same time.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None = None,
        *,
        batch_invariant: bool = False,
        table: TileTable | None = None,
    ) -> None:
        """Take a weight; a batch-invariant row of y does not depend on the other rows of x."""
        self._weight_OI, self._bias_O = weight_OI, bias_O
        self._batch_invariant = batch_invariant
        self._table = shipped_table() if table is None else table
        self.num_rows, self.num_inputs = weight_OI.shape
        # As many counters as the narrowest tiles could need; kernels leave them at zero.
        self._counters = torch.zeros(
            self.num_rows // 16 + 1, dtype=torch.int32, device=weight_OI.device
        )

    def __call__(
        self, x_TI: torch.Tensor, out_TO: torch.Tensor, *, norm: Norm | None = None
    ) -> None:
        """Write y."""
        tiles = self._choose(x_TI)
        if tiles is None:
            self._through_library(_normed(x_TI, norm), out_TO)
        else:
            self._run(tiles, x_TI, out_TO, norm=norm)

    def add_to(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> None:
        """Add y to the residual in place, rounded once."""
        tiles = self._choose(x_TI)
        if tiles is not None:
            self._run(tiles, x_TI, residual_TO, adds=True)
            return
        residual_TO.addmm_(x_TI, self._weight_OI.t())
        if self._bias_O is not None:
            residual_TO += self._bias_O

    def gated(self, x_TI: torch.Tensor, out_TH: torch.Tensor, *, norm: Norm | None = None) -> None:
        """Write silu of the first half of y times the second half."""
        tiles = self._choose(x_TI, gated=True)
        if tiles is None:
            y_TO = x_TI.new_empty((x_TI.shape[0], self.num_rows))
            self._through_library(_normed(x_TI, norm), y_TO)
            silu_mul(y_TO, out_TH)
        else:
            self._run(tiles, x_TI, out_TH, norm=norm, gated=True)

    def _choose(self, x_TI: torch.Tensor, *, gated: bool = False) -> Tiles | None:
        product = Product(
            num_inputs=self.num_inputs,
            num_rows=self.num_rows,
            gated=gated,
            element_bytes=self._weight_OI.element_size(),
        )
        return self._table.choose(product, x_TI.shape[0])

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
        weight_OI, bias_O = self._weight_OI, self._bias_O
        if isinstance(tiles, GemvTiles):
            x_I, out_O = x_TI[0], out[0]
            gemv(x_I, weight_OI, out_O, tiles, bias_O=bias_O, norm=norm, adds=adds, gated=gated)
        else:
            skinny(
                _normed(x_TI, norm),
                weight_OI,
                out,
                tiles,
                self._counters,
                bias_O=bias_O,
                adds=adds,
                gated=gated,
            )

    def _through_library(self, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        if self._bias_O is None:
            torch.mm(x_TI, self._weight_OI.t(), out=y_TO)
        else:
            torch.addmm(self._bias_O, x_TI, self._weight_OI.t(), out=y_TO)


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


def _normed(x_TI: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    if norm is None:
        return x_TI
    normed_TI = torch.empty_like(x_TI)
    add_rms_norm(x_TI, None, norm.weight_E, norm.eps, normed_TI)
    return normed_TI
