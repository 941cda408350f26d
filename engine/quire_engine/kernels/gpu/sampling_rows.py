"""The table of sampling parameters on the GPU: one line of int32 words per persistent row.

Floats are stored by their bits, seeds as the first half of the noise's key, so that a kernel never
needs 64-bit arithmetic.
"""

import triton
import triton.language as tl

NUM_WORDS = tl.constexpr(16)
"""Words of a line: one cache line of 64 bytes."""

SEED_LANE_0 = tl.constexpr(0)
SEED_LANE_1 = tl.constexpr(1)
POSITION = tl.constexpr(2)
"""Tokens generated so far; the sampler counts it up itself."""
TOP_K = tl.constexpr(3)
"""0 is no limit."""
TEMPERATURE = tl.constexpr(4)
"""0 is greedy."""
TOP_P = tl.constexpr(5)
MIN_P_DEPTH = tl.constexpr(6)
"""log(min_p); -inf is no limit."""
EDITS = tl.constexpr(7)
"""Which edits the row asks for: the bits below."""
MIN_TOKENS = tl.constexpr(8)
PRESENCE = tl.constexpr(9)
FREQUENCY = tl.constexpr(10)
REPETITION = tl.constexpr(11)

HAS_ALLOWED = tl.constexpr(1)
HAS_STOPS = tl.constexpr(2)
HAS_PENALTIES = tl.constexpr(4)


@triton.jit
def line_of(table_ptr, rows_ptr, slot):
    """Return the address of a batch slot's line."""
    return table_ptr + tl.load(rows_ptr + slot).to(tl.int64) * NUM_WORDS


@triton.jit
def load_float(line_ptr, WORD: tl.constexpr):
    """Load a word that holds a float's bits."""
    return tl.load(line_ptr + WORD).to(tl.float32, bitcast=True)


@triton.jit
def load_unsigned(line_ptr, WORD: tl.constexpr):
    """Load a word as the noise's arithmetic needs it."""
    return tl.load(line_ptr + WORD).to(tl.uint32, bitcast=True)
