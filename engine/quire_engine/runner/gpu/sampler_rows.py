"""Writes sampling parameters as lines of the GPU's table (`kernels/gpu/sampling_rows.py`)."""

from typing import Any

import numpy as np

from quire_engine.kernels.gpu import sampling_rows as words
from quire_engine.runner.gpu.sampler_edits import edits_of
from quire_engine.runner.sampling.noise import seed_lanes
from quire_engine.runner.sampling.row import SamplingRow

_MOST = 2**31 - 1

Line = np.ndarray[Any, np.dtype[np.int32]]


def line_of(row: SamplingRow, vocab_size: int) -> Line:
    """Return the row's parameters and state as int32 words."""
    params = row.params
    line = np.zeros(words.NUM_WORDS.value, dtype=np.int32)
    unsigned, floats = line.view(np.uint32), line.view(np.float32)
    unsigned[[words.SEED_LANE_0.value, words.SEED_LANE_1.value]] = seed_lanes(row.seed)
    line[words.POSITION.value] = row.num_output_tokens
    line[words.TOP_K.value] = min(params.top_k, vocab_size)
    floats[words.TEMPERATURE.value] = 0.0 if row.is_greedy else params.temperature
    floats[words.TOP_P.value] = params.top_p
    floats[words.MIN_P_DEPTH.value] = np.log(params.min_p) if params.min_p > 0.0 else -np.inf
    line[words.EDITS.value] = edits_of(row)
    line[words.MIN_TOKENS.value] = min(params.min_tokens, _MOST)
    floats[words.PRESENCE.value] = params.presence_penalty
    floats[words.FREQUENCY.value] = params.frequency_penalty
    floats[words.REPETITION.value] = params.repetition_penalty
    return line
