"""One row times pairs of rows of a weight, on tensor cores.

Decoding an 8-bit number and adding its product up takes more instructions than a processor has for
each byte that it reads, so tensor cores do the latter: one instruction multiplies 16 rows of 16
numbers with 8 columns. Every thread holds what it loaded. Four threads side by side hold numbers of
one row of the weight as one of the 16 rows, those of its pair as another, and what x has for them
as the column of their number. The sums that are meant are those whose row and column are of the
same threads, and these end up in them. Nothing is ever exchanged; tensor cores, of whose work an
eighth is of use, have enough of it to spare.
"""

import triton
import triton.language as tl

from quire_engine.kernels.gpu.prefetch import prefetch_rows
from quire_engine.kernels.gpu.row_products import load_weight

TINY = tl.constexpr(1e-30)
"""Keeps the mean square of zeros from being divided by."""


def _multiplied(kind: str, steps: list[tuple[str, str, str]]) -> str:
    """Return assembly that adds products to four sums, and writes $0 to $3.

    Each step is what makes a0 to a3 of the weights, and the two words of x. The sums come last,
    behind four words of each row and of its pair, and as many words of x as two for each step.
    """
    sums = 20 if len(steps) == 4 else 16
    lines = ["{", ".reg .b32 a0,a1,a2,a3;", ".reg .f32 d0,d1,d2,d3;", ".reg .b16 low,high;"]
    lines += [f"mov.f32 d{n}, ${sums + n};" for n in range(4)]
    for load, b0, b1 in steps:
        lines.append(load)
        lines.append(
            f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 "
            f"{{d0,d1,d2,d3}}, {{a0,a1,a2,a3}}, {{{b0},{b1}}}, {{d0,d1,d2,d3}};"
        )
    lines += [f"mov.f32 ${n}, d{n};" for n in range(4)] + ["}"]
    return "\n".join(lines)


def _decoded(word: int, pair_word: int) -> str:
    """Return assembly that makes 16-bit numbers of a word of each row."""
    return "\n".join(
        f"mov.b32 {{low,high}}, ${place};\n"
        f"cvt.rn.f16x2.e4m3x2 a{row}, low;\ncvt.rn.f16x2.e4m3x2 a{row + 2}, high;"
        for row, place in enumerate((word, pair_word))
    )


def _plain(word: int, pair_word: int) -> str:
    """Return assembly that takes two words of each row as they are."""
    places = (word, pair_word, word + 1, pair_word + 1)
    return "\n".join(f"mov.b32 a{n}, ${place};" for n, place in enumerate(places))


_8_BIT = tl.constexpr(
    _multiplied("f16", [(_decoded(4 + n, 8 + n), f"${12 + n}", f"${16 + n}") for n in range(4)])
)
_BF16, _F16 = (
    tl.constexpr(
        _multiplied(kind, [(_plain(4 + n, 8 + n), f"${12 + n}", f"${13 + n}") for n in (0, 2)])
    )
    for kind in ("bf16", "f16")
)
_OWN = tl.constexpr(
    """{
.reg .b32 lane, group, odd;
.reg .pred is_own, is_odd;
.reg .f32 a, b;
mov.u32 lane, %laneid;
shr.u32 group, lane, 2;
and.b32 lane, lane, 3;
and.b32 odd, group, 1;
setp.ne.u32 is_odd, odd, 0;
shr.u32 group, group, 1;
setp.eq.u32 is_own, lane, group;
selp.f32 a, $3, $2, is_odd;
selp.f32 b, $5, $4, is_odd;
selp.f32 $0, a, 0f00000000, is_own;
selp.f32 $1, b, 0f00000000, is_own;
}"""
)


@triton.jit
def _pack_pairs(x):
    """Return words of two 16-bit numbers each."""
    low, high = tl.split(tl.reshape(x, (x.shape[0] // 2, 2)))
    low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
    high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
    return (low | (high << 16)).to(tl.int32, bitcast=True)


@triton.jit
def _add_products(acc, words, pair_words, x, IS_8_BIT: tl.constexpr):
    """Add to `acc`, (R, W), products of words of some rows and of their pairs, (R, W), with x.

    x has a 16-bit number for each that is in a row. `_own_sums` makes sense of the result.
    """
    packed = _pack_pairs(x)
    if IS_8_BIT:
        first, second = tl.split(tl.reshape(packed, (packed.shape[0] // 2, 2)))
        return tl.inline_asm_elementwise(
            _8_BIT,
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,f,f,f,f",
            [words, pair_words, first[None, :], second[None, :], acc],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )
    else:
        return tl.inline_asm_elementwise(
            _BF16 if x.dtype == tl.bfloat16 else _F16,
            "=f,=f,=f,=f,r,r,r,r,r,r,r,r,r,r,r,r,f,f,f,f",
            [words, pair_words, packed[None, :], acc],
            dtype=tl.float32,
            is_pure=True,
            pack=4,
        )


@triton.jit
def _own_sums(acc):
    """Return what adds up to the products of the rows and of their pairs, two of (R, W / 4)."""
    ROWS: tl.constexpr = acc.shape[0]
    GROUPS: tl.constexpr = acc.shape[1] // 4
    even, odd = tl.split(tl.reshape(acc, (ROWS, GROUPS, 2, 2)))
    row_even, pair_even = tl.split(even)
    row_odd, pair_odd = tl.split(odd)
    return tl.inline_asm_elementwise(
        _OWN,
        "=f,=f,f,f,f,f",
        [row_even, row_odd, pair_even, pair_odd],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def multiply_pairs(
    row,
    w_ptr,
    o,
    num_apart,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Multiply rows `o` of the weight, and those `num_apart` further on, with x.

    Takes and returns what `multiply_rows` does. `uses_tensor_cores` knows for which weights and
    tiles.
    """
    x_ptr, norm_ptr, eps = row
    IS_8_BIT: tl.constexpr = w_ptr.dtype.element_ty.primitive_bitwidth == 8
    IS_EVEN: tl.constexpr = WIDTH % BLOCK == 0
    PACK: tl.constexpr = 4 if IS_8_BIT else 2
    WORDS: tl.constexpr = BLOCK // PACK
    i = tl.arange(0, BLOCK)
    j = tl.arange(0, WORDS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    start_of_row = o[:, None].to(tl.int64) * WIDTH
    apart = tl.cast(num_apart, tl.int64) * WIDTH
    w = w_ptr.to(tl.pointer_type(tl.int32), bitcast=True) + start_of_row // PACK + j[None, :]
    is_there = (j < WIDTH // PACK)[None, :]
    tile = load_weight(w, is_there, IS_EVEN)
    pair_tile = load_weight(w + apart // PACK, is_there, IS_EVEN)
    if PREFETCH > 0:
        prefetch_rows(w_ptr + start_of_row + BLOCK, PREFETCH, LINE)
        prefetch_rows(w_ptr + start_of_row + apart + BLOCK, PREFETCH, LINE)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if IS_8_BIT:
        # 16-bit floating point holds any x once its numbers have a mean square of one.
        mean = _mean_square(x_ptr, WIDTH, BLOCK)
        to_unit = tl.rsqrt(mean + (eps if HAS_NORM else TINY))
    squares = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((o.shape[0], WORDS), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        # The next tile is on its way while this one is multiplied.
        if start + BLOCK < WIDTH:
            is_there = (j < (WIDTH - start - BLOCK) // PACK)[None, :]
            next_w = w + (start + BLOCK) // PACK
            next_tile = load_weight(next_w, is_there, IS_EVEN)
            next_pair = load_weight(next_w + apart // PACK, is_there, IS_EVEN)
        x = tl.load(x_ptr + start + i, mask=start + i < WIDTH, other=0)
        wide = x.to(tl.float32)
        if HAS_NORM:
            if not IS_8_BIT:
                squares += wide * wide
            wide *= tl.load(norm_ptr + start + i, mask=start + i < WIDTH, other=0).to(tl.float32)
        if IS_8_BIT:
            x = (wide * to_unit).to(tl.float16)
        else:
            x = wide.to(x.dtype)
        acc = _add_products(acc, tile, pair_tile, x, IS_8_BIT)
        if start + BLOCK < WIDTH:
            tile = next_tile
            pair_tile = next_pair
    acc, pair_acc = _own_sums(acc)
    factor = 1.0
    if HAS_NORM and not IS_8_BIT:
        factor = tl.rsqrt(tl.sum(squares, 0) / WIDTH + eps)
    if IS_8_BIT and not HAS_NORM:
        factor = tl.sqrt(mean + TINY)
    return acc, pair_acc, factor


@triton.jit
def _mean_square(x_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < WIDTH, other=0).to(tl.float32)
        squares += x * x
    return tl.sum(squares, 0) / WIDTH
