"""The model of a CPU runner in C, where the processor and the model allow it."""

import logging
from collections.abc import Sequence

import torch

from quire_engine.kernels.cpu.decoder import NativeChunk, NativeDecoder, unsupported
from quire_engine.kernels.cpu.library import Library, load_library
from quire_engine.model.spec import ModelSpec
from quire_engine.runner.input_batch import Chunk, InputBatch

logger = logging.getLogger(__name__)


class NativeModel:
    """Runs steps in the kernels; reads tokens and block tables where the batch has them."""

    def __init__(self, decoder: NativeDecoder) -> None:
        self._decoder = decoder

    def forward(self, chunks: Sequence[Chunk], batch: InputBatch) -> None:
        """Compute the tokens of the chunks."""
        self._decoder.forward(
            [
                NativeChunk(
                    token_ids=batch.token_ids_address(chunk.row),
                    blocks=batch.blocks_address(chunk.row),
                    start=chunk.start,
                    num_tokens=chunk.num_tokens,
                    first_line=chunk.first_line,
                )
                for chunk in chunks
            ]
        )

    def logits(self, lines: Sequence[int]) -> torch.Tensor:
        """Return the logits of some lines of the last step, valid until the next call."""
        return self._decoder.logits(lines)


def find_library(spec: ModelSpec, dtype: torch.dtype, block_size: int) -> Library | None:
    """Load the kernels if they can run a model; None, and why in the log, if not."""
    reason = unsupported(spec, dtype, block_size)
    if reason is not None:
        logger.info("no native CPU kernels, torch computes instead reason=%s", reason)
        return None
    return load_library(torch.get_num_threads())
