"""What is recorded of an engine's steps; on a CPU, for real."""

import gc
import gzip
import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from gpu_runner_support import run, workload
from quire_engine.config import EngineConfig, ProfilingConfig
from quire_engine.core.engine_core import EngineCore
from quire_engine.errors import ConfigError, QuireError
from quire_engine.runner.factory import build_runner
from quire_engine.runner.plan import PendingStep, StepPlan, StepResult
from quire_engine.runner.profiling import ProfiledRunner, kernel_table, profiled
from quire_engine.sampling_params import SamplingParams
from quire_engine.testing.hash_runner import HashRunner

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def new_core(tiny_model: Path, **options: Any) -> EngineCore:
    config = EngineConfig.from_flat(
        {
            "model": str(tiny_model),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "device": "cpu",
            "num_gpu_blocks_override": 40,
        }
        | options
    )
    return EngineCore(config, build_runner(config), prefix_model="tiny", eos_token_ids=frozenset())


def steps_in(trace: Path) -> list[dict[str, Any]]:
    """Return the recorded steps, in order."""
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name") == "step" and event.get("ph") == "X"]
    return sorted(steps, key=lambda event: event["ts"])


def test_the_steps_asked_for_are_in_the_trace(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made" / "for it"
    core = new_core(tiny_model, profile=str(folder), profile_steps=4, profile_skip=3)

    run(core, workload([9, 5], [GREEDY]))

    [trace] = folder.glob("*.pt.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len(steps_in(trace)) == 4
    assert any("aten::" in event.get("name", "") for event in events)
    table = trace.with_name("quire-0.txt").read_text()
    assert table.startswith(f"4 steps of 8 tokens in {trace}\n")
    assert "aten::" in table
    assert capsys.readouterr().err.endswith(table)


def test_a_recording_that_is_cut_short_is_written_too(tiny_model: Path, tmp_path: Path) -> None:
    core = new_core(tiny_model, profile=str(tmp_path), profile_steps=100)
    run(core, workload([9], [GREEDY]))
    assert not list(tmp_path.iterdir())

    del core
    gc.collect()

    [trace] = tmp_path.glob("*.pt.trace.json.gz")
    assert len(steps_in(trace)) == 12


def test_what_runs_between_start_and_stop_is_in_the_trace_and_nothing_else(
    tiny_model: Path, tmp_path: Path
) -> None:
    core = new_core(tiny_model, profile=str(tmp_path), profile_steps=0)

    for num_prompt_tokens in (9, 5):
        run(core, workload([7], [GREEDY]))
        core.profiler().start_profile()
        run(core, workload([num_prompt_tokens, 6], [GREEDY]))
        core.profiler().stop_profile()

    traces = sorted(tmp_path.glob("*.pt.trace.json.gz"))
    # A step for both prompts, which samples their first tokens, and 11 for the others.
    assert [len(steps_in(trace)) for trace in traces] == [12, 12]
    tables = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert tables[0].startswith(f"12 steps of {9 + 6 + 22} tokens in {traces[0]}\n")
    assert tables[1].startswith(f"12 steps of {5 + 6 + 22} tokens in {traces[1]}\n")


def test_a_start_takes_the_place_of_steps_still_to_be_recorded(
    tiny_model: Path, tmp_path: Path
) -> None:
    core = new_core(tiny_model, profile=str(tmp_path), profile_steps=2, profile_skip=14)
    run(core, workload([9], [GREEDY]))

    core.profiler().start_profile()
    run(core, workload([9], [GREEDY]))
    core.profiler().stop_profile()
    run(core, workload([9], [GREEDY]))

    [trace] = tmp_path.glob("*.pt.trace.json.gz")
    assert len(steps_in(trace)) == 12


def test_a_stop_ends_the_recording_of_the_configuration(tiny_model: Path, tmp_path: Path) -> None:
    core = new_core(tiny_model, profile=str(tmp_path), profile_steps=100)
    run(core, workload([9], [GREEDY]))
    with pytest.raises(QuireError, match=r"recorded already: .*profile_steps=0"):
        core.profiler().start_profile()

    core.profiler().stop_profile()
    run(core, workload([9], [GREEDY]))

    [trace] = tmp_path.glob("*.pt.trace.json.gz")
    assert len(steps_in(trace)) == 12
    with pytest.raises(QuireError, match=r"no steps are being recorded: call start_profile\(\)"):
        core.profiler().stop_profile()


def test_a_step_in_flight_ends_in_its_own_recording(tmp_path: Path) -> None:
    runner = LateRunner()
    recorded = ProfiledRunner(runner, ProfilingConfig(profile=str(tmp_path), profile_steps=1))
    pending = [recorded.launch(plan(1))]

    recorded.start_profile()
    pending += [recorded.launch(plan(number)) for number in (2, 4)]
    recorded.stop_profile()

    assert runner.told == ["launch 1", "wait 1", "launch 2", "launch 4"]
    assert [one.wait().token_ids for one in pending] == [{0: 1}, {0: 2}, {0: 4}]
    tables = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert [table.split(" in ")[0] for table in tables] == [
        "1 steps of 1 tokens",
        "2 steps of 6 tokens",
    ]


def test_without_a_folder_for_traces_a_start_names_the_option(tiny_model: Path) -> None:
    core = new_core(tiny_model)

    with pytest.raises(ConfigError, match="no folder for traces is configured: set profile"):
        core.profiler()


def test_engines_that_record_into_one_folder_keep_their_traces(
    tiny_model: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        run(new_core(tiny_model, profile=str(tmp_path), profile_steps=1), workload([9], [GREEDY]))

    names = sorted(path.name for path in tmp_path.glob("*.gz"))
    assert names == ["quire-0.pt.trace.json.gz", "quire-1.pt.trace.json.gz"]


def test_nothing_stands_before_a_runner_that_is_not_recorded() -> None:
    runner = HashRunner(num_blocks=4, block_size=16, max_model_len=64, vocab_size=50)

    assert profiled(runner, ProfilingConfig()) is runner


class LateRunner(HashRunner):
    """Tells when steps are launched and waited for."""

    def __init__(self) -> None:
        super().__init__(
            num_blocks=4, block_size=16, max_model_len=64, vocab_size=50, max_num_in_flight=2
        )
        self.told: list[str] = []
        self.only_here = "of this runner alone"

    def launch(self, plan: StepPlan) -> PendingStep:
        number = len(plan.num_tokens)
        self.told.append(f"launch {number}")
        return LatePending(self, number)


@dataclass(frozen=True)
class LatePending:
    runner: LateRunner
    number: int

    def wait(self) -> StepResult:
        self.runner.told.append(f"wait {self.number}")
        if self.number == 3:
            raise RuntimeError("step 3 is broken")
        return StepResult(token_ids={0: self.number})


def plan(number: int) -> StepPlan:
    """Return a plan that its number of sequences tells from others."""
    return StepPlan(num_tokens=dict.fromkeys(range(number), 1))


def test_the_last_step_is_over_before_one_that_is_not_recorded_begins(tmp_path: Path) -> None:
    runner = LateRunner()
    recorded = ProfiledRunner(runner, ProfilingConfig(profile=str(tmp_path), profile_steps=2))

    pending = [recorded.launch(plan(number)) for number in (1, 2, 4)]

    assert runner.told == ["launch 1", "launch 2", "wait 2", "launch 4"]
    assert [one.wait().token_ids for one in pending] == [{0: 1}, {0: 2}, {0: 4}]
    assert runner.told[4:] == ["wait 1", "wait 4"]


def test_a_recorded_step_that_fails_fails_when_it_is_waited_for(tmp_path: Path) -> None:
    recorded = ProfiledRunner(LateRunner(), ProfilingConfig(profile=str(tmp_path), profile_steps=1))

    pending = recorded.launch(plan(3))
    recorded.launch(plan(1))

    for _ in range(2):
        with pytest.raises(RuntimeError, match="step 3 is broken"):
            pending.wait()


def test_all_that_a_runner_is_asked_for_comes_from_the_one_recorded(tmp_path: Path) -> None:
    recorded = ProfiledRunner(LateRunner(), ProfilingConfig(profile=str(tmp_path)))

    assert recorded.only_here == "of this runner alone"
    assert (recorded.num_blocks, recorded.max_num_in_flight, recorded.device) == (4, 2, "cpu")


class DeviceType(Enum):
    """Torch's own, as far as it matters."""

    CPU = 0
    CUDA = 1


@dataclass(frozen=True)
class Average:
    """What torch says of one name."""

    key: str
    count: int
    device_type: DeviceType
    self_device_time_total: float = 0.0
    self_cpu_time_total: float = 0.0


def test_the_table_of_a_gpu_has_its_kernels_alone_and_the_longest_first() -> None:
    events = [
        Average("aten::mm", 2, DeviceType.CPU, 900.0, 50.0),
        Average("_norm_kernel", 4, DeviceType.CUDA, 100.0),
        Average("step", 1, DeviceType.CUDA, 500.0),
        Average("gemm", 2, DeviceType.CUDA, 300.0),
    ]

    header, *lines = kernel_table(events, is_cuda=True).splitlines()

    assert header.split() == ["ms", "share", "calls", "mean", "us", "name"]
    assert [line.split() for line in lines] == [
        ["0.300", "75.0%", "2", "150.0", "gemm"],
        ["0.100", "25.0%", "4", "25.0", "_norm_kernel"],
        ["0.400", "in", "all"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile_steps": -1}, "profile_steps must be at least 0, not -1"),
        ({"profile_skip": -1}, "profile_skip must be at least 0, not -1"),
    ],
)
def test_a_recording_of_less_than_nothing_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProfilingConfig(**options)  # type: ignore[arg-type]  # each is an int


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=r"no folder for traces: .*file"):
        ProfiledRunner(LateRunner(), ProfilingConfig(profile=str(tmp_path / "file" / "inside")))
