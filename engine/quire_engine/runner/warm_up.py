"""Runs a few steps before the first request, so that it does not pay for what happens once.

That is: threads, scratch memory, and the code that oneDNN generates for shapes it meets first.
"""

from quire_engine.runner.plan import AdmittedSequence, ModelRunner, StepPlan
from quire_engine.sampling_params import SamplingParams

PROMPT_TOKENS = 256
DECODE_STEPS = 2


def warm_up(runner: ModelRunner, *, block_size: int) -> None:
    """Prefill one prompt and decode from it, in the first blocks of the empty cache."""
    room = min(runner.max_model_len - DECODE_STEPS, runner.num_blocks * block_size - DECODE_STEPS)
    num_tokens = min(PROMPT_TOKENS, room, runner.max_num_batched_tokens)
    if num_tokens < 1:
        return
    num_blocks = -(-(num_tokens + DECODE_STEPS) // block_size)
    prompt = AdmittedSequence(
        seq_id=-1,
        token_ids=[0] * num_tokens,
        num_prompt_tokens=num_tokens,
        block_ids=list(range(num_blocks)),
        num_computed_tokens=0,
        params=SamplingParams(temperature=0.0, max_tokens=None),
    )
    runner.launch(StepPlan(admitted=[prompt], num_tokens={-1: num_tokens})).wait()
    for _ in range(DECODE_STEPS):
        runner.launch(StepPlan(num_tokens={-1: 1})).wait()
    runner.launch(StepPlan(dropped=[-1])).wait()
