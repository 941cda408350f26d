"""The runner of GPUs computes what the CPU's does, with its kernels interpreted if need be."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from gpu_runner_support import FAMILIES, Setting, run, tokens_of, workload
from quire_engine.runner.gpu.graphs import StepGraphs, graph_sizes, piece_sizes
from quire_engine.runner.gpu.layout import lay_out
from quire_engine.runner.gpu.rows import Rows
from quire_engine.runner.gpu.staging import Staging
from quire_engine.runner.gpu.step import GpuStep
from quire_engine.runner.plan import AdmittedSequence, StepPlan
from quire_engine.sampling_params import SamplingParams

pytestmark = pytest.mark.timeout(300)

GREEDY = SamplingParams(temperature=0.0, max_tokens=4)
SEEDED = SamplingParams(temperature=0.9, top_p=0.8, seed=7, max_tokens=4)
FREE = SamplingParams(temperature=1.1, top_k=30, min_p=0.02, seed=3, max_tokens=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tokens_of_the_cpu(family: str) -> None:
    setting = Setting(family)
    sequences = workload([1, 33, 50, 18], [GREEDY, SEEDED, FREE])

    expected = tokens_of(run(setting.core(setting.cpu_runner()), sequences))
    got = tokens_of(run(setting.core(setting.gpu_runner()), sequences))

    assert got == expected


class UncapturedGraphs(StepGraphs):
    """Pads steps as captured ones are, and runs them as they are."""

    def __init__(self, step: GpuStep) -> None:
        self._step = step
        self._sizes, self._piece_sizes, self._sample = [1, 4, 6], [8, 24], {}
        self.padded: set[tuple[int, int]] = set()

    def decode(self, size: int) -> None:
        self._step.decode(size)

    def piece(self, index: int, num_tokens: int) -> None:
        self.padded.add((index, num_tokens))
        self._step.piece(index, num_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_steps_give_the_tokens_of_the_cpu(family: str) -> None:
    setting = Setting(family)
    sequences = workload([1, 33, 50, 3, 9], [GREEDY, SEEDED, FREE])
    runner = setting.gpu_runner()
    graphs = UncapturedGraphs(runner.step)
    runner.use_graphs(graphs)

    got = tokens_of(run(setting.core(runner), sequences))

    assert graphs.padded >= {(0, 24), (1, 24)}
    assert got == tokens_of(run(setting.core(setting.cpu_runner()), sequences))


@given(st.integers(1, 2000))
def test_sizes_of_graphs_waste_little(limit: int) -> None:
    for sizes in (graph_sizes(limit), piece_sizes(limit)):
        assert sizes == sorted(set(sizes))
        assert all(size <= limit for size in sizes)
        for smaller, size in pairwise(sizes):
            assert size - smaller <= max(16, size // 4)


def test_preempted_sequences_give_the_tokens_of_the_cpu() -> None:
    setting = Setting(num_blocks=4)
    sequences = workload([14, 15, 13], [GREEDY.clone(max_tokens=8), SEEDED.clone(max_tokens=8)])
    core = setting.core(setting.gpu_runner())

    got = tokens_of(run(core, sequences))

    assert core.stats.num_preemptions > 0
    assert got == tokens_of(run(setting.core(setting.cpu_runner()), sequences))


def test_prompt_logprobs_are_those_of_the_cpu() -> None:
    setting = Setting()
    sequences = workload([50], [GREEDY.clone(prompt_logprobs=2, max_tokens=1)])
    [[first_expected, *_], [first, *_]] = (
        run(setting.core(runner), sequences)[0]
        for runner in (setting.cpu_runner(), setting.gpu_runner())
    )

    assert first.prompt_logprobs is not None
    assert first_expected.prompt_logprobs is not None
    for mine, theirs in zip(first.prompt_logprobs, first_expected.prompt_logprobs, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_a_sequence_that_is_aborted_in_flight_leaves_the_others_alone() -> None:
    setting = Setting()
    sequences = workload([5, 20, 18], [GREEDY.clone(max_tokens=6)])
    core = setting.core(setting.gpu_runner())
    for sequence in sequences:
        core.add(sequence)
    heard: dict[int, list[int]] = {}
    for step in range(40):
        if step == 3:
            core.abort([1])
        if core.has_work:
            for output in core.step().outputs:
                heard.setdefault(output.seq_id, []).extend(output.token_ids)

    expected = tokens_of(run(setting.core(setting.cpu_runner()), sequences))
    assert (heard[0], heard[2]) == (expected[0], expected[2])
    assert heard.get(1, []) == expected[1][: len(heard.get(1, []))]
    assert core.stats.num_used_blocks == 0


def _rows() -> Rows:
    return Rows(max_num_seqs=4, max_model_len=100, block_size=16, device=torch.device("cpu"))


def _sequence(seq_id: int, num_tokens: int, num_computed: int = 0) -> AdmittedSequence:
    return AdmittedSequence(
        seq_id=seq_id,
        token_ids=list(range(num_tokens)),
        num_prompt_tokens=num_tokens,
        block_ids=[seq_id * 2, seq_id * 2 + 1],
        num_computed_tokens=num_computed,
        params=GREEDY,
    )


def test_single_tokens_come_first_in_a_step_and_chunks_keep_their_order() -> None:
    rows = _rows()
    rows.apply(StepPlan(admitted=[_sequence(1, 9), _sequence(2, 8, 7), _sequence(3, 5)]))

    layout = lay_out(rows, {1: 4, 2: 1, 3: 5})

    assert layout.slot_seq_ids == [2, 1, 3]
    assert layout.num_decodes == 1
    assert layout.query_lens_B.tolist() == [1, 4, 5]
    assert layout.first_lines_B.tolist() == [0, 1, 5]
    assert layout.seq_lens_B.tolist() == [8, 4, 5]
    assert layout.seq_ids == [2, 3]
    assert layout.last_lines.tolist() == [0, 9]
    assert not layout.is_decode
    assert lay_out(rows, {2: 1, 3: 1}).is_decode


def test_a_row_is_free_again_when_its_sequence_is_dropped() -> None:
    rows = _rows()
    for seq_id in range(1, 20):
        rows.apply(StepPlan(dropped=[seq_id - 1], admitted=[_sequence(seq_id, 5)]))
        rows.apply(StepPlan(dropped=[77]))
    assert len(rows) == 1


def test_what_is_staged_arrives_in_the_rows() -> None:
    rows = _rows()
    staging = Staging(1 << 12, torch.device("cpu"))
    rows.apply(StepPlan(admitted=[_sequence(1, 9), _sequence(2, 3)], new_block_ids={1: [30]}))
    rows.stage(staging)
    staging.send()
    rows.apply_staged()

    assert rows.tokens_RL[rows[1], :9].tolist() == list(range(9))
    assert rows.block_table_RM[rows[1], :3].tolist() == [2, 3, 30]
    assert rows.block_table_RM[rows[2], :2].tolist() == [4, 5]


def test_staged_arrays_keep_their_shapes_and_regions_their_place() -> None:
    staging = Staging(1 << 10, torch.device("cpu"))
    region = staging.reserve(3, np.int32)
    for turn in range(6):
        region.host[:] = turn
        table = staging.put(np.full((2, 5), turn, dtype=np.int64))
        staging.send()
        assert region.device.tolist() == [turn] * 3
        assert table.tolist() == [[turn] * 5] * 2
