"""The pieces that a decoder layer is made of.

Legend: T tokens, I inputs, O outputs.

On a CPU, linears run through oneDNN with weights reordered once at load time: several times as
fast for few rows, and every row's result has the same bits whatever the number of rows, from two
rows on (measured; tests/engine/model/test_layers.py guards it). `MIN_ROWS` says so to callers.
"""

from typing import Protocol

import torch
from torch.nn import functional

MIN_ROWS = 2
"""Fewest rows for which a linear's results do not depend on the number of rows."""

PACKED_FOR_ROWS = 32
"""Rows that the weights' memory layout is chosen for."""


class Linear(Protocol):
    """y = x W^T + b, and what can be done to y before it is written."""

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor: ...

    def silu(self, x_TI: torch.Tensor) -> torch.Tensor: ...

    def times(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor: ...

    def plus(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor: ...


class PlainLinear:
    """A linear on any device, through torch's own kernels."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return functional.linear(x_TI, self._weight_OI, self._bias_O)

    def silu(self, x_TI: torch.Tensor) -> torch.Tensor:
        return functional.silu(self(x_TI), inplace=True)

    def times(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        return self(x_TI).mul_(other_TO)

    def plus(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        return self(x_TI).add_(other_TO)


class PackedLinear:
    """A linear on the CPU, with weights in oneDNN's layout and the follow-up fused into it."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> None:
        ops = torch.ops.mkldnn
        self._weight = ops._reorder_linear_weight(weight_OI.contiguous(), PACKED_FOR_ROWS)
        self._bias_O = bias_O
        self._unary = ops._linear_pointwise.default
        self._binary = ops._linear_pointwise.binary

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._unary(x_TI, self._weight, self._bias_O, "none", [], "")
        return y

    def silu(self, x_TI: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._unary(x_TI, self._weight, self._bias_O, "swish", [], "")
        return y

    def times(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._binary(x_TI, other_TO, self._weight, self._bias_O, "mul")
        return y

    def plus(self, x_TI: torch.Tensor, other_TO: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self._binary(x_TI, other_TO, self._weight, self._bias_O, "add")
        return y


def make_linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> Linear:
    """Build the fastest linear that there is for a weight's device and type."""
    if has_packed_linear(weight_OI.device, weight_OI.dtype):
        return PackedLinear(weight_OI, bias_O)
    return PlainLinear(weight_OI, bias_O)


def has_packed_linear(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether oneDNN can run linears of a type on a device."""
    if device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch has none
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class RmsNorm:
    """Scale a row to unit mean square, then by a learned weight."""

    def __init__(self, weight_I: torch.Tensor, eps: float) -> None:
        self._weight_I, self._eps = weight_I, eps
        self._shape = tuple(weight_I.shape)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x_TI, self._shape, self._weight_I, self._eps)
