"""The model of a CPU runner in torch: any type, any processor, and the reference of the kernels."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from quire_engine.model.decoder import Decoder
from quire_engine.model.layers import MIN_ROWS
from quire_engine.runner.attention import CpuAttention
from quire_engine.runner.input_batch import Chunk, InputBatch
from quire_engine.runner.memory import KvCache


class StepModel(Protocol):
    """What turns the tokens of a step into logits."""

    def forward(self, chunks: Sequence[Chunk], batch: InputBatch) -> None:
        """Compute the tokens of the chunks, and store their keys and values."""
        ...

    def logits(self, lines: Sequence[int]) -> torch.Tensor:
        """Return the logits of some lines of the last step, valid until the next call.

        A line's logits do not depend on which others are asked for.
        """
        ...


class TorchModel:
    """Decoder and attention in plain torch."""

    def __init__(self, decoder: Decoder, cache: KvCache) -> None:
        self._decoder = decoder
        self._attention = CpuAttention(decoder.spec, cache)
        self._hidden_TE = torch.empty(0)

    def forward(self, chunks: Sequence[Chunk], batch: InputBatch) -> None:
        """Compute the tokens of the chunks; padding lines come behind them."""
        token_ids = np.concatenate([batch.token_ids(c.row, c.start, c.end) for c in chunks])
        positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        num_padding = max(0, MIN_ROWS - len(token_ids))
        if num_padding:
            token_ids = np.pad(token_ids, (0, num_padding), mode="edge")
            positions = np.pad(positions, (0, num_padding), mode="edge")
        self._attention.prepare(chunks, len(token_ids))
        self._hidden_TE = self._decoder.forward(
            torch.from_numpy(token_ids), torch.from_numpy(positions), self._attention
        )

    def logits(self, lines: Sequence[int]) -> torch.Tensor:
        """Return the logits of some lines of the last step."""
        padded = [*lines, *[lines[-1]] * (MIN_ROWS - len(lines))]
        return self._decoder.logits(self._hidden_TE[padded])[: len(lines)]
