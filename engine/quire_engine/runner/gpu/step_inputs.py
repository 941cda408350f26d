"""The arrays that describe a step, at fixed places on the GPU.

Legend: B batch slots, S slots that sample, T tokens.
"""

import numpy as np
import torch

from quire_engine.kernels.gpu.batch_inputs import prepare_tokens
from quire_engine.runner.gpu.decoder import Tokens
from quire_engine.runner.gpu.layout import StepLayout
from quire_engine.runner.gpu.rows import Rows
from quire_engine.runner.gpu.staging import Staging


class StepInputs:
    """Staged regions of one step, and the tokens that kernels make of them."""

    def __init__(self, rows: Rows, staging: Staging, *, max_num_seqs: int, max_num_tokens: int):
        device = rows.tokens_RL.device
        self.max_num_seqs = max_num_seqs
        self._rows = rows
        self.rows_B = staging.reserve(max_num_seqs, np.int32)
        self.first_lines_B = staging.reserve(max_num_seqs, np.int32)
        self.query_lens_B = staging.reserve(max_num_seqs, np.int32)
        self.seq_lens_B = staging.reserve(max_num_seqs, np.int32)
        self.last_lines_S = staging.reserve(max_num_seqs, np.int32)
        self.sampling_rows_S = staging.reserve(max_num_seqs, np.int32)
        self.sampling_lens_S = staging.reserve(max_num_seqs, np.int32)
        self._token_ids_T = torch.zeros(max_num_tokens, dtype=torch.int32, device=device)
        self._positions_T = torch.zeros(max_num_tokens, dtype=torch.int32, device=device)
        self._slots_T = torch.zeros(max_num_tokens, dtype=torch.int64, device=device)

    def stage(self, layout: StepLayout, *, padded_to: int) -> None:
        """Write a step's arrays; slots up to `padded_to` become padding."""
        num_slots, picked = layout.num_slots, layout.sampling_S
        num_sampling = len(picked)
        padding = slice(num_slots, padded_to)
        self.rows_B.host[:num_slots] = layout.rows_B
        self.rows_B.host[padding] = self._rows.padding_row
        self.first_lines_B.host[:num_slots] = layout.first_lines_B
        self.first_lines_B.host[padding] = np.arange(num_slots, padded_to)
        self.query_lens_B.host[:num_slots] = layout.query_lens_B
        self.query_lens_B.host[padding] = 1
        self.seq_lens_B.host[:num_slots] = layout.seq_lens_B
        self.seq_lens_B.host[padding] = 0
        self.last_lines_S.host[:num_sampling] = layout.last_lines
        self.sampling_rows_S.host[:num_sampling] = layout.rows_B[picked]
        self.sampling_lens_S.host[:num_sampling] = layout.seq_lens_B[picked]
        padding = slice(num_sampling, max(padded_to, num_sampling))
        self.sampling_rows_S.host[padding] = self._rows.padding_row
        self.sampling_lens_S.host[padding] = 0

    def tokens(self, num_tokens: int) -> Tokens:
        """Return the place of a step's tokens."""
        return Tokens(
            ids_T=self._token_ids_T[:num_tokens],
            positions_T=self._positions_T[:num_tokens],
            slots_T=self._slots_T[:num_tokens],
        )

    def prepare(
        self,
        *,
        num_slots: int,
        num_tokens: int,
        max_query_len: int,
        block_size: int,
        padded_to: int = 0,
    ) -> Tokens:
        """Make the tokens of a step out of what was staged; those after them store nothing."""
        tokens = self.tokens(num_tokens)
        if padded_to > num_tokens:
            self._slots_T[num_tokens:padded_to] = -1
        prepare_tokens(
            self.rows_B.device[:num_slots],
            self.first_lines_B.device[:num_slots],
            self.query_lens_B.device[:num_slots],
            self.seq_lens_B.device[:num_slots],
            self._rows.tokens_RL,
            self._rows.block_table_RM,
            block_size=block_size,
            max_query_len=max_query_len,
            token_ids_T=tokens.ids_T,
            positions_T=tokens.positions_T,
            slots_T=tokens.slots_T,
        )
        return tokens
