"""8-bit floating point (e4m3): its limits, and how a weight becomes numbers and scales.

Legend: I inputs, O outputs.
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
BLOCK = 128
SCALE = "_scale"
"""layers.0.qkv.weight_scale is the scale of layers.0.qkv.weight, float32."""
X_SCALE = "_x_scale"
"""layers.0.qkv.weight_x_scale is what its inputs are divided by, if the checkpoint fixes that."""
SMALLEST_SCALE = 1e-12
ROWS_AT_ONCE = 4096


def quantize_by_row(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight's e4m3 numbers, and the scale (O,) of each of its rows."""
    # A GPU divides by a number as by its inverse, a CPU does not, and both should find the same.
    scale_O = (weight_OI.abs().amax(1).float() * (1 / FP8_MAX)).clamp_min(SMALLEST_SCALE)
    numbers_OI = torch.empty_like(weight_OI, dtype=FP8)
    # In parts, so that float32 copies of large weights do not fill the memory.
    for start in range(0, weight_OI.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        numbers_OI[rows] = (weight_OI[rows].float() / scale_O[rows, None]).to(FP8)
    return numbers_OI, scale_O
