"""The most that an engine can be asked for at once fits in the memory it was given."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from quire_engine.core.engine_core import EngineCore
from quire_engine.core.messages import NewSequence
from quire_engine.sampling_params import SamplingParams
from random_models import WIDE_CACHE, new_core

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

GIB = 1 << 30
MAX_NUM_SEQS = 512
MAX_MODEL_LEN = 4096
PROMPT_TOKENS = 8192
"""Of a step, on a GPU; the decodes of all rows come on top."""
BLOCK_SIZE = 16
OUTPUT_LEN = 192
"""Long enough for the first sequence to run still when the last row is taken."""
DEMANDING = SamplingParams(
    temperature=1.0,
    top_p=0.9,
    top_k=1000,
    repetition_penalty=1.2,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    logit_bias={1: 1.0},
    min_tokens=OUTPUT_LEN,
    logprobs=20,
    max_tokens=OUTPUT_LEN,
    ignore_eos=True,
)


def worst_sequences(core: EngineCore) -> Iterator[NewSequence]:
    """Yield more sequences than can run, whose prompts nearly fill the cache with all rows taken.

    Their outputs fill the rest, so that some are preempted. The first ones, and some that come when
    all rows sample, ask for prompt logprobs as well.
    """
    draw = random.Random(0)
    num_slots = core.stats.num_total_blocks * BLOCK_SIZE
    prompt_len = min(MAX_MODEL_LEN - OUTPUT_LEN, int(num_slots * 0.955) // MAX_NUM_SEQS)
    for seq_id in range(MAX_NUM_SEQS + 64):
        is_scored = seq_id < PROMPT_TOKENS // prompt_len + 1 or seq_id >= MAX_NUM_SEQS + 56
        yield NewSequence(
            seq_id=seq_id,
            prompt_token_ids=draw.choices(range(WIDE_CACHE["vocab_size"]), k=prompt_len),
            params=DEMANDING.clone(prompt_logprobs=20 if is_scored else None),
            bad_words_token_ids=[[2, 3]],
            arrival_s=float(seq_id),
        )


def taken_bytes() -> int:
    """Return what is taken of the GPU's memory, by anyone."""
    free, total = torch.cuda.mem_get_info()
    return total - free


@pytest.mark.parametrize("utilization", [0.9, 0.95])
def test_the_worst_batch_stays_within_the_memory_asked_for(
    utilization: float, tmp_path: Path
) -> None:
    core = new_core(
        tmp_path,
        WIDE_CACHE,
        gpu_memory_utilization=utilization,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        block_size=BLOCK_SIZE,
    )
    ready, total = taken_bytes(), torch.cuda.mem_get_info()[1]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    for sequence in worst_sequences(core):
        core.add(sequence)

    peak, most_blocks, most_rows = ready, 0, 0
    while core.has_work:
        for output in core.step().outputs:
            assert output.error is None, output.error
        stats = core.stats
        peak = max(peak, taken_bytes())
        most_blocks = max(most_blocks, stats.num_used_blocks)
        most_rows = max(most_rows, stats.num_running)
    core.check()

    after = torch.cuda.memory_stats()
    sys.stdout.write(
        f"\ngpu_memory_utilization {utilization}: {utilization * total / GIB:.2f} GiB allowed, "
        f"{ready / GIB:.2f} taken when ready, {peak / GIB:.2f} at most under load; torch reserved "
        f"{torch.cuda.max_memory_reserved() / GIB:.2f}, allocated "
        f"{torch.cuda.max_memory_allocated() / GIB:.2f}; {most_rows} rows, {most_blocks} of "
        f"{core.stats.num_total_blocks} blocks, {core.stats.num_preemptions} preemptions, "
        f"{core.stats.num_steps} steps\n"
    )
    assert most_rows == MAX_NUM_SEQS
    assert most_blocks >= 0.99 * core.stats.num_total_blocks
    assert core.stats.num_preemptions > 0
    assert after["num_ooms"] == before["num_ooms"]
    assert after["num_alloc_retries"] == before["num_alloc_retries"]
    assert peak <= utilization * total
    assert torch.cuda.max_memory_reserved() <= utilization * total
    assert core.stats.num_compiles_after_ready == 0
