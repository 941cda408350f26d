"""Fetching what a kernel will read into the L2 cache, before it waits for the kernel ahead of it.

All that is written goes through that cache, so that what is written after it was fetched is read as
it was written.
"""

import triton
import triton.language as tl

LINE_BYTES = tl.constexpr(128)
"""Bytes of a cache line."""


@triton.jit
def prefetch_rows(row_ptr, PREFETCH: tl.constexpr, LINE: tl.constexpr):
    """Fetch the first PREFETCH numbers of some rows, (O, 1) pointers, LINE of them at a time."""
    lines = row_ptr + (tl.arange(0, PREFETCH // LINE) * LINE)[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [lines.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
