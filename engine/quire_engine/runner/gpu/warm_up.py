"""Steps before the first request: to measure memory, and so that no request pays for a compile."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from quire_engine.kernels.gpu.tables import shipped_table
from quire_engine.progress import bar
from quire_engine.runner.gpu.runner import GpuRunner
from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.sampling_params import SamplingParams

CHUNK_TOKENS = (2, 511, 512, 3000)
"""Prompt tokens that meet the variants of kernels other than linears."""

GREEDY = SamplingParams(temperature=0.0, max_tokens=None)
RANDOM = SamplingParams(temperature=1.0, top_p=0.9, top_k=50, min_p=0.01, max_tokens=None, seed=1)
FULL = SamplingParams(
    temperature=1.0, repetition_penalty=1.1, presence_penalty=0.1, logprobs=1, max_tokens=None
)


class TrialSteps:
    """Makes up sequences and runs steps of them. They use the first blocks of the cache."""

    def __init__(self, runner: GpuRunner, *, block_size: int) -> None:
        self._runner, self._block_size = runner, block_size

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of a step that the cache holds."""
        runner = self._runner
        room = (runner.num_blocks - 1) * self._block_size
        return min(runner.max_num_batched_tokens, room)

    def largest(self) -> None:
        """Compute as many tokens as a step may have, in as few sequences as can be."""
        longest = min(self._runner.max_model_len, self.max_num_tokens)
        lens: list[int] = []
        left = self.max_num_tokens
        while left > 0 and len(lens) < self._runner.step.max_num_slots:
            lens.append(min(longest, left))
            left -= lens[-1]
        self.prefill(lens)

    def prefill(self, lens: Sequence[int], params: SamplingParams = GREEDY) -> None:
        """Compute prompts of some lengths, and forget them."""
        self._run(lens, params, num_decodes=0)

    def decode(self, params: SamplingParams = GREEDY, *, num_slots: int = 1) -> None:
        """Compute a short prompt and a token after it, in so many sequences."""
        self._run([2] * num_slots, params, num_decodes=1)

    def _run(self, lens: Sequence[int], params: SamplingParams, *, num_decodes: int) -> None:
        admitted, first_block = [], 0
        for index, num_tokens in enumerate(lens):
            num_blocks = -(-(num_tokens + num_decodes) // self._block_size)
            # Sequences may share blocks here: what they compute is not looked at.
            first_block = 0 if first_block + num_blocks > self._runner.num_blocks else first_block
            blocks = list(range(first_block, first_block + num_blocks))
            first_block += num_blocks
            admitted.append(_sequence(-1 - index, num_tokens, blocks, params))
        seq_ids = [sequence.seq_id for sequence in admitted]
        self._launch(StepPlan(admitted=admitted, num_tokens=dict(zip(seq_ids, lens, strict=True))))
        for _ in range(num_decodes):
            self._launch(StepPlan(num_tokens=dict.fromkeys(seq_ids, 1)))
        self._launch(StepPlan(dropped=seq_ids))

    def _launch(self, plan: StepPlan) -> None:
        self._runner.launch(plan).wait()


def run_all_variants(runner: GpuRunner, *, block_size: int, shows_progress: bool = True) -> None:
    """Run every kind of step once. The first time on a machine, most of them compile something."""
    steps = TrialSteps(runner, block_size=block_size)
    variants = bar(
        list(_variants(runner, steps)),
        desc="Warming up",
        unit="steps",
        leave=False,
        disable=not shows_progress,
    )
    for run in variants:
        run()


def _variants(runner: GpuRunner, steps: TrialSteps) -> Iterator[Callable[[], None]]:
    most = min(steps.max_num_tokens, runner.max_model_len - 2)
    row_counts = shipped_table().row_counts()
    for num_tokens in sorted({*CHUNK_TOKENS, *row_counts}):
        if num_tokens <= most:
            yield partial(steps.prefill, [num_tokens])
    most_slots = min(runner.step.max_num_slots, steps.max_num_tokens // 3)
    batches = {*row_counts, *runner.attention.batches(most_slots), most_slots}
    for num_slots in sorted(size for size in batches if size <= most_slots):
        yield partial(steps.decode, GREEDY, num_slots=num_slots)
    for params in (RANDOM, FULL):
        for num_slots in sorted({1, 2, 16, most_slots}):
            if num_slots <= most_slots:
                yield partial(steps.decode, params, num_slots=num_slots)
    yield steps.largest


def _sequence(
    seq_id: int, num_tokens: int, blocks: list[int], params: SamplingParams
) -> AdmittedSequence:
    return AdmittedSequence(
        seq_id=seq_id,
        token_ids=[0] * num_tokens,
        num_prompt_tokens=num_tokens,
        block_ids=blocks,
        num_computed_tokens=0,
        params=params,
    )
