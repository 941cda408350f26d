"""Attention of one step: single tokens through one kernel, longer chunks through another.

What long prompts begin with, and prompts of equal length side by side, go through cuDNN, where all
there is to see is what the step computes and its bits may depend on how a prompt was cut.

Legend: T tokens, B single tokens, S lines that are sampled from, H query heads, N key/value heads,
D head dim, I tiles.
"""

from collections.abc import Sequence
from functools import partial

import torch

from quire_engine.kernels.gpu.decode_attention import decode_attention
from quire_engine.kernels.gpu.decode_attention_plan import DecodePlan
from quire_engine.kernels.gpu.fresh_attention import (
    MULTIPLE,
    FreshBatch,
    FreshShape,
    cut_fresh,
    fresh_attention,
    plan_fresh,
)
from quire_engine.kernels.gpu.prefill_attention import prefill_attention, prefill_tile_tokens
from quire_engine.kernels.gpu.prefill_attention_tiles import PrefillChunk, cut_prefill_tiles
from quire_engine.kernels.gpu.rotary import CacheLayer
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.gpu.cache import GpuKvCache
from quire_engine.runner.gpu.layout import StepLayout
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.gpu.step_inputs import StepInputs


class GpuAttention:
    """Plans a step once, and attends in every layer. Queries of single tokens come first."""

    def __init__(
        self,
        spec: ModelSpec,
        inputs: StepInputs,
        block_table_RM: torch.Tensor,
        cache: GpuKvCache,
        *,
        max_num_tokens: int,
        batch_invariant: bool,
    ) -> None:
        device = block_table_RM.device
        self._inputs, self._block_table_RM, self._layers = inputs, block_table_RM, cache.layers
        self._num_heads = spec.num_heads
        self._scale = spec.head_dim**-0.5
        self._tile_tokens = prefill_tile_tokens(
            spec.num_heads, spec.num_kv_heads, spec.head_dim, cache.dtype.itemsize, device
        )
        self._windows = [layer.sliding_window for layer in spec.layers]

        def plan_for(window: int | None) -> DecodePlan:
            return DecodePlan(
                max_batch=inputs.max_num_seqs,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                device=device,
                num_processors=num_processors(device),
                kv_dtype=cache.dtype,
                window=window,
                batch_invariant=batch_invariant,
            )

        self._plans = {window: plan_for(window) for window in set(self._windows)}
        self._lines_plan = plan_for(self._windows[-1])
        self._num_decodes = 0
        self._tiles_I4: torch.Tensor | None = None
        self._fresh: list[FreshBatch] = []
        self._takes_fresh = not batch_invariant and set(self._windows) == {None}
        self._plan_fresh = partial(
            plan_fresh,
            max_num_tokens,
            inputs.max_num_seqs,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            dtype=cache.dtype,
            device=device,
        )

    def stage(self, layout: StepLayout, staging: Staging) -> None:
        """Add what the chunks of a step need to its staging copy."""
        self._tiles_I4, self._fresh = None, []
        if layout.num_decodes == layout.num_slots:
            return
        chunks = _chunks(layout)
        self._fresh, rest = cut_fresh(chunks, self._fresh_shapes(chunks))
        if rest:
            self._tiles_I4 = staging.put(cut_prefill_tiles(rest, self._tile_tokens))

    def _fresh_shapes(self, chunks: Sequence[PrefillChunk]) -> frozenset[FreshShape]:
        """Return the shapes that cuDNN has planned, once a chunk is not much shorter than all.

        Warming up has such a step, after others whose kernels are compiled in the meantime.
        """
        longest = max(chunk.num_tokens for chunk in chunks)
        return self._plan_fresh() if self._takes_fresh and longest >= MULTIPLE // 2 else frozenset()

    def plan(self, num_decodes: int) -> None:
        """Plan the single tokens of a step, on the GPU."""
        self._num_decodes = num_decodes
        if not num_decodes:
            return
        seq_lens_B = self._inputs.seq_lens_B.device[:num_decodes]
        rows_B = self._inputs.rows_B.device[:num_decodes]
        for plan in self._plans.values():
            plan.update(seq_lens_B, rows_B)

    def plan_decodes(self, num_decodes: int) -> None:
        """Plan a step of single tokens alone."""
        self._tiles_I4, self._fresh = None, []
        self.plan(num_decodes)

    def plan_lines(self, num_lines: int) -> None:
        """Plan the tokens that are sampled from, each the last of its sequence."""
        if num_lines:
            self._lines_plan.update(
                self._inputs.sampling_lens_S.device[:num_lines],
                self._inputs.sampling_rows_S.device[:num_lines],
            )

    def batches(self, most: int) -> list[int]:
        """Return batch sizes up to `most` that meet every form of decode attention."""
        return sorted(
            {size for plan in self._plans.values() for size in plan.variant_batches(most)}
        )

    def __call__(self, index: int, heads_THD: torch.Tensor, out_THD: torch.Tensor) -> None:
        """Attend in one layer; keys and values of the step are in the cache."""
        layer, window = self._layers[index], self._windows[index]
        q_THD, num_decodes = heads_THD[:, : self._num_heads], self._num_decodes
        if num_decodes:
            self._decode(layer, self._plans[window], q_THD[:num_decodes], out_THD[:num_decodes])
        if self._tiles_I4 is not None:
            self._prefill(layer, window, q_THD, self._tiles_I4, out_THD)
        for batch in self._fresh:
            fresh_attention(heads_THD, out_THD, batch, num_heads=self._num_heads, scale=self._scale)

    def attend_lines(self, index: int, heads_SHD: torch.Tensor, out_SHD: torch.Tensor) -> None:
        """Attend in the last layer with what `plan_lines` planned."""
        q_SHD = heads_SHD[:, : self._num_heads]
        self._decode(self._layers[index], self._lines_plan, q_SHD, out_SHD)

    def _decode(
        self, layer: CacheLayer, plan: DecodePlan, q_BHD: torch.Tensor, out_BHD: torch.Tensor
    ) -> None:
        decode_attention(
            q_BHD,
            layer.k_BSND,
            layer.v_BSND,
            self._block_table_RM,
            plan,
            out_BHD,
            scale=self._scale,
            k_scale=layer.k_scale,
            v_scale=layer.v_scale,
        )

    def _prefill(
        self,
        layer: CacheLayer,
        window: int | None,
        q_THD: torch.Tensor,
        tiles_I4: torch.Tensor,
        out_THD: torch.Tensor,
    ) -> None:
        prefill_attention(
            q_THD,
            layer.k_BSND,
            layer.v_BSND,
            self._block_table_RM,
            tiles_I4,
            out_THD,
            scale=self._scale,
            window=window,
            k_scale=layer.k_scale,
            v_scale=layer.v_scale,
        )


def num_processors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; without one, as many as make a test interesting."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _chunks(layout: StepLayout) -> list[PrefillChunk]:
    picked = slice(layout.num_decodes, None)
    columns = (
        layout.rows_B[picked].tolist(),
        layout.first_lines_B[picked].tolist(),
        layout.query_lens_B[picked].tolist(),
        layout.seq_lens_B[picked].tolist(),
    )
    return [
        PrefillChunk(row=row, first_token=line, num_tokens=count, position=seq_len - count)
        for row, line, count, seq_len in zip(*columns, strict=True)
    ]
