"""The weights of a linear, plain or quantized, and how the vendor's library multiplies with them.

Legend: T tokens, I inputs, O outputs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from quire_engine.kernels.gpu.linear_skinny import SkinnyTiles
from quire_engine.kernels.gpu.norm import Norm, add_rms_norm
from quire_engine.kernels.gpu.quantize import Fp8Weight, quantize_rows
from quire_engine.kernels.gpu.tables import INVARIANT, INVARIANT_8_BIT, MANY_ROWS_8_BIT


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Rows in the form in which a weight multiplies them; scales only if they are quantized."""

    rows_TI: torch.Tensor
    scale: torch.Tensor | None = None


class LinearWeight(Protocol):
    """What a linear needs to know of its weight."""

    invariant_tiles: SkinnyTiles
    """Tiles for any number of rows, which give each the same bits."""
    library_tiles: SkinnyTiles | None
    """Tiles for many rows, where the library has no such product."""

    numbers_OI: torch.Tensor
    scale: torch.Tensor | None
    """Scales of rows or blocks; None: the numbers are the weight."""

    def factor(self, x_TI: torch.Tensor, norm: Norm | None) -> Factor:
        """Return what tensor cores multiply: x or its norm, quantized if the weight is."""
        ...

    def multiply(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Write y through the library."""
        ...

    def add_product(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Add the product to y through the library."""
        ...


class PlainWeight:
    """A weight in the type of x."""

    def __init__(self, numbers_OI: torch.Tensor) -> None:
        self.numbers_OI = numbers_OI
        self.scale: torch.Tensor | None = None
        self.invariant_tiles = INVARIANT
        self.library_tiles: SkinnyTiles | None = None

    def factor(self, x_TI: torch.Tensor, norm: Norm | None) -> Factor:
        """Return x, or its norm."""
        if norm is None:
            return Factor(x_TI)
        normed_TI = torch.empty_like(x_TI)
        add_rms_norm(x_TI, None, norm.weight_E, norm.eps, normed_TI)
        return Factor(normed_TI)

    def multiply(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Write y."""
        if bias_O is None:
            torch.mm(x.rows_TI, self.numbers_OI.t(), out=y_TO)
        else:
            torch.addmm(bias_O, x.rows_TI, self.numbers_OI.t(), out=y_TO)

    def add_product(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Add the product to y, rounded once but for a bias."""
        y_TO.addmm_(x.rows_TI, self.numbers_OI.t())
        if bias_O is not None:
            y_TO += bias_O


class QuantizedWeight:
    """A weight of 8-bit numbers, and x quantized to match."""

    def __init__(self, weight: Fp8Weight) -> None:
        self.numbers_OI = weight.numbers
        self.scale: torch.Tensor | None = weight.scale
        self.invariant_tiles = INVARIANT_8_BIT
        self.library_tiles: SkinnyTiles | None = MANY_ROWS_8_BIT if weight.per_block else None
        self._x_scale, self._per_block = weight.x_scale, weight.per_block

    def factor(self, x_TI: torch.Tensor, norm: Norm | None) -> Factor:
        """Return x or its norm, quantized row by row or group by group."""
        rows = quantize_rows(x_TI, norm=norm, per_group=self._per_block, static_scale=self._x_scale)
        return Factor(rows.numbers, rows.scale)

    def multiply(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Write y; one scale for each row of x and of the weight."""
        assert x.scale is not None, "rows are quantized like the weight"
        assert self.scale is not None, "a quantized weight has scales"
        torch._scaled_mm(
            x.rows_TI,
            self.numbers_OI.t(),
            x.scale[:, None],
            self.scale[None, :],
            bias=bias_O,
            out_dtype=y_TO.dtype,
            use_fast_accum=True,
            out=y_TO,
        )

    def add_product(self, x: Factor, bias_O: torch.Tensor | None, y_TO: torch.Tensor) -> None:
        """Add the product to y, rounded before it is added."""
        product_TO = torch.empty_like(y_TO)
        self.multiply(x, bias_O, product_TO)
        y_TO += product_TO
