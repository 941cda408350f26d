"""How a step's decode attention is cut into work, decided on the GPU.

The keys of each sequence are cut into splits so that the splits of all sequences together fill
the GPU evenly: a uniform batch keeps one split a sequence, one long sequence among short ones gets
many. A program takes one split of one key/value head. The list is in order of length, longest
sequence first, so that no long one is left for the end.

How many items there are is known only on the GPU, but never more than `num_items_bound`, which
depends on the batch size alone; the kernels' grids have that size, and can be captured.

Legend: B batch slots, I items, N key/value heads, G query heads of a key/value head, D head dim.
"""

import torch
import triton
import triton.language as tl

from quire_engine.kernels.gpu.attention_tiles import (
    AttentionTable,
    DecodeTiles,
    Heads,
    shipped_attention_table,
)

ITEM_FIELDS = tl.constexpr(8)
"""Integers of an item: slot, row, first key, end of keys, first item of its slot, splits of its
slot, and two of padding that keep an item on one sector of memory."""

SLOT_SIZES = (1, 64, 512, 1024, 4096)
MAX_SLOTS = SLOT_SIZES[-1]

INVARIANT_SPLIT_KEYS = 512
INVARIANT_MAX_SPLITS = 16
"""With `batch_invariant`, splits depend on the sequence's own length alone."""


class DecodePlan:
    """The work list of a step and the scratch space of its split sequences.

    One plan serves all layers with the same window; plans of one model may not be used at once.

    The kernel launched right after `update` must not start early (programmatic dependent launch):
    attention reads the plan before it waits for the kernel ahead of it.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        num_processors: int,
        kv_dtype: torch.dtype,
        window: int | None = None,
        batch_invariant: bool = False,
        table: AttentionTable | None = None,
    ) -> None:
        if max_batch > MAX_SLOTS:
            raise ValueError(f"max_batch is {max_batch}; a plan has at most {MAX_SLOTS} slots")
        self.heads = Heads(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            kv_bytes=kv_dtype.itemsize,
        )
        self.window = window
        self.batch_invariant = batch_invariant
        self._num_processors = num_processors
        self._table = table or shipped_attention_table()
        max_items = max(self.num_items_bound(size) for size in range(1, max_batch + 1))
        self.items_I8 = torch.zeros(max_items, ITEM_FIELDS.value, dtype=torch.int32, device=device)
        self.num_items = torch.zeros(1, dtype=torch.int32, device=device)
        heads = (max_items, num_heads)
        self.partial_IHD = torch.empty(*heads, head_dim, dtype=torch.float32, device=device)
        self.log_sums_IH = torch.empty(heads, dtype=torch.float32, device=device)
        self.arrivals_BN = torch.zeros(max_batch, num_kv_heads, dtype=torch.int32, device=device)
        """Splits of a slot that are done; the last of them merges and sets it back to zero."""

    def tiles(self, batch_size: int) -> DecodeTiles:
        """Return the tiles of a batch size; an invariant plan has the same for all."""
        return self._table.decode(self.heads, 1 if self.batch_invariant else batch_size)

    def num_target_items(self, batch_size: int) -> int:
        """Return how many equal items would fill the GPU."""
        programs = self._num_processors * self.tiles(batch_size).programs_per_processor
        return max(1, programs // self.heads.num_kv_heads)

    def variant_batches(self, max_batch: int) -> list[int]:
        """Return batch sizes that together reach every compiled form of the kernels."""
        seen: dict[tuple[int, DecodeTiles], int] = {}
        for batch_size in range(1, max_batch + 1):
            seen.setdefault((_num_slots(batch_size), self.tiles(batch_size)), batch_size)
        return list(seen.values())

    def num_items_bound(self, batch_size: int) -> int:
        """Return the most items that a batch of this size can have."""
        if self.batch_invariant:
            return batch_size * INVARIANT_MAX_SPLITS
        return batch_size + self.num_target_items(batch_size)

    def update(self, seq_lens_B: torch.Tensor, rows_B: torch.Tensor) -> None:
        """Plan a step. A sequence's length includes its newest token; 0 is a padding slot."""
        (batch_size,) = seq_lens_B.shape
        tiles = self.tiles(batch_size)
        assert self.num_items_bound(batch_size) <= len(self.items_I8), "tiles came after the plan"
        num_slots = _num_slots(batch_size)
        _plan_kernel[(1,)](
            seq_lens_B,
            rows_B,
            self.items_I8,
            self.num_items,
            batch_size,
            self.window or 0,
            self.num_target_items(batch_size),
            tiles.min_split_keys,
            MAX_SPLITS=INVARIANT_MAX_SPLITS if self.batch_invariant else 0,
            INVARIANT_KEYS=INVARIANT_SPLIT_KEYS,
            BLOCK_N=tiles.block_n,
            NUM_SLOTS=num_slots,
            num_warps=max(1, min(16, num_slots // 64)),
        )


def _num_slots(batch_size: int) -> int:
    """Return the planning kernel's size: one of a few, so that there are few to compile."""
    return next(size for size in SLOT_SIZES if batch_size <= size)


@triton.jit(
    do_not_specialize=["batch_size", "window", "num_target_items", "min_split_keys"],
    do_not_specialize_on_alignment=["seq_lens_ptr", "rows_ptr"],
)
def _plan_kernel(
    seq_lens_ptr,
    rows_ptr,
    items_ptr,
    num_items_ptr,
    batch_size,
    window,
    num_target_items,
    min_split_keys,
    MAX_SPLITS: tl.constexpr,
    INVARIANT_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_SLOTS: tl.constexpr,
):
    """Write the whole list: one program."""
    slot = tl.arange(0, NUM_SLOTS)
    length = tl.load(seq_lens_ptr + slot, mask=slot < batch_size, other=-1)
    keys = tl.where(window > 0, tl.minimum(length, window), length)
    if NUM_SLOTS > 1:
        # A slot is below 2**12; what lies past the batch has -1 keys and sorts to the end.
        order = tl.sort((keys.to(tl.int64) << 12) | slot.to(tl.int64), descending=True)
        slot = (order & 4095).to(tl.int32)
        keys = (order >> 12).to(tl.int32)
    used = slot < batch_size
    keys = tl.maximum(keys, 0)
    length = tl.load(seq_lens_ptr + slot, mask=used, other=0)
    row = tl.load(rows_ptr + slot, mask=used, other=0)
    if MAX_SPLITS > 0:
        num_splits = tl.minimum(tl.cdiv(keys, INVARIANT_KEYS), MAX_SPLITS)
    else:
        even_keys = tl.cdiv(tl.sum(keys.to(tl.int64)), num_target_items).to(tl.int32)
        num_splits = tl.cdiv(keys, tl.maximum(even_keys, min_split_keys))
    num_splits = tl.maximum(num_splits, 1)
    split_keys = tl.maximum(tl.cdiv(tl.cdiv(keys, num_splits), BLOCK_N) * BLOCK_N, BLOCK_N)
    num_splits = tl.where(used, tl.maximum(tl.cdiv(keys, split_keys), 1), 0)
    first_item = tl.cumsum(num_splits) - num_splits
    first_key = length - keys
    tl.store(num_items_ptr, tl.sum(num_splits))
    for split in range(tl.max(num_splits)):
        mask = split < num_splits
        item = items_ptr + (first_item + split) * ITEM_FIELDS
        start = first_key + split * split_keys
        tl.store(item, slot, mask=mask)
        tl.store(item + 1, row, mask=mask)
        tl.store(item + 2, start, mask=mask)
        tl.store(item + 3, tl.minimum(start + split_keys, length), mask=mask)
        tl.store(item + 4, first_item, mask=mask)
        tl.store(item + 5, num_splits, mask=mask)
