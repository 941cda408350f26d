"""All that a request can ask of sampling, through the runner of GPUs and the CPU's."""

import pytest

from gpu_runner_support import Setting, run, tokens_of, workload
from quire_engine.sampling_params import SamplingParams

pytestmark = pytest.mark.timeout(300)

PENALISED = SamplingParams(
    seed=5, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, max_tokens=4
)
BIASED = SamplingParams(temperature=0.0, logit_bias={3: 4.0, 9: -50.0}, min_tokens=3, max_tokens=4)
PLAIN = SamplingParams(temperature=0.9, top_p=0.8, seed=7, max_tokens=4)


def test_edited_sequences_give_the_tokens_of_the_cpu_after_preemption_too() -> None:
    setting = Setting(num_blocks=4)
    sequences = workload([14, 15, 13], [PENALISED, BIASED, PLAIN])
    sequences[0].bad_words_token_ids = [[3], [7, 8]]
    core = setting.core(setting.gpu_runner())

    got = tokens_of(run(core, sequences))

    assert core.stats.num_preemptions > 0
    assert got == tokens_of(run(setting.core(setting.cpu_runner()), sequences))


def test_logprobs_of_sampled_tokens_are_those_of_the_cpu() -> None:
    setting = Setting()
    params = [PLAIN.clone(logprobs=3), PLAIN, BIASED.clone(logprobs=0)]
    sequences = workload([5, 20, 18], params)

    expected, got = (
        run(setting.core(runner), sequences)
        for runner in (setting.cpu_runner(), setting.gpu_runner())
    )

    for seq_id, num_top in ((0, 3), (2, 0)):
        mine = [one for output in got[seq_id] for one in output.logprobs or ()]
        theirs = [one for output in expected[seq_id] for one in output.logprobs or ()]
        assert [one.token_ids for one in mine] == [one.token_ids for one in theirs]
        assert [one.ranks for one in mine] == [one.ranks for one in theirs]
        assert len(mine) == 4
        assert len(mine[0].token_ids) == num_top + 1
        for one, other in zip(mine, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert all(output.logprobs is None for output in got[1])
