"""Linear layers of the GPU decoder, with what comes before and after them fused in.

Legend: T tokens, I inputs, O outputs, H half of O.
"""

import torch

from quire_engine.kernels.gpu.activation import silu_mul
from quire_engine.kernels.gpu.norm import Norm, add_rms_norm


class GpuLinear:
    """y = norm(x) W^T + b, and what can be done to y before it is written.

    Nothing here waits for the GPU; every method can be captured in a CUDA graph.
    """

    def __init__(
        self,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None = None,
        *,
        batch_invariant: bool = False,
    ) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O
        self._batch_invariant = batch_invariant

    def __call__(
        self, x_TI: torch.Tensor, out_TO: torch.Tensor, *, norm: Norm | None = None
    ) -> None:
        """Write y."""
        x_TI = _normed(x_TI, norm)
        if self._bias_O is None:
            torch.mm(x_TI, self._weight_OI.t(), out=out_TO)
        else:
            torch.addmm(self._bias_O, x_TI, self._weight_OI.t(), out=out_TO)

    def add_to(self, x_TI: torch.Tensor, residual_TO: torch.Tensor) -> None:
        """Add y to the residual in place, rounded once."""
        residual_TO.addmm_(x_TI, self._weight_OI.t())
        if self._bias_O is not None:
            residual_TO += self._bias_O

    def gated(self, x_TI: torch.Tensor, out_TH: torch.Tensor, *, norm: Norm | None = None) -> None:
        """Write silu of the first half of y times the second half."""
        y_TO = torch.empty(
            (x_TI.shape[0], self._weight_OI.shape[0]), dtype=out_TH.dtype, device=out_TH.device
        )
        self(x_TI, y_TO, norm=norm)
        silu_mul(y_TO, out_TH)


class GpuMlp:
    """silu(gate) * up, projected back."""

    def __init__(self, gate_up: GpuLinear, down: GpuLinear, *, width: int) -> None:
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
