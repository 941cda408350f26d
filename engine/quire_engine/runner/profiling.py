"""Traces of steps by torch's profiler, and a table of what took the time.

`ProfiledRunner` stands between a core and its runner for as long as steps are recorded. A step that
is launched while another is in flight belongs to the trace with all that it runs: the last one
recorded is waited for before the next is launched.
"""

import contextlib
import itertools
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from quire_engine.config import ProfilingConfig
from quire_engine.errors import ConfigError, QuireError
from quire_engine.runner.plan import (
    ModelRunner,
    PendingStep,
    StepPlan,
    StepProfiler,
    StepResult,
)

NUM_ROWS = 30
"""Of the table: the rest of a step's kernels is short."""
STEP = "step"
"""What a launched step is called in the trace."""


def profiled(runner: ModelRunner, config: ProfilingConfig) -> ModelRunner:
    """Return a runner that records steps if the configuration asks for it, else the same one.

    Raises:
        ConfigError: the folder for traces cannot be written to.
    """
    return ProfiledRunner(runner, config) if config.profile else runner


class ProfiledRunner:
    """A `ModelRunner` that records some of its steps, and tells all else as it is told."""

    def __init__(self, runner: ModelRunner, config: ProfilingConfig) -> None:
        self._runner = runner
        self._recording = Recording(_folder(config), is_cuda=runner.device == "cuda")
        self._num_steps = 0
        self._first, self._end = config.profile_skip, config.profile_skip + config.profile_steps
        self._last: LastStep | None = None
        # Also when fewer steps come than were asked for.
        weakref.finalize(self, self._recording.finish)

    @property
    def num_blocks(self) -> int:
        return self._runner.num_blocks

    @property
    def max_model_len(self) -> int:
        return self._runner.max_model_len

    @property
    def max_num_batched_tokens(self) -> int:
        return self._runner.max_num_batched_tokens

    @property
    def device(self) -> str:
        return self._runner.device

    @property
    def max_num_in_flight(self) -> int:
        return self._runner.max_num_in_flight

    @property
    def profiler(self) -> StepProfiler:
        return self

    def __getattr__(self, name: str) -> Any:
        """Return what only some runners have."""
        return getattr(self._runner, name)

    def launch(self, plan: StepPlan) -> PendingStep:
        """Begin one step; see `ModelRunner.launch`."""
        if not plan.num_tokens:
            return self._runner.launch(plan)
        number = self._num_steps
        self._num_steps += 1
        if not self._first <= number < self._end:
            self._settle_last()
            return self._runner.launch(plan)
        if not self._recording.is_running:
            self._recording.start()
        described = f"{plan.total_num_tokens} tokens of {len(plan.num_tokens)} sequences"
        with record_function(STEP, described):
            pending = self._runner.launch(plan)
        self._recording.note(plan.total_num_tokens)
        if number < self._end - 1:
            return pending
        self._last = LastStep(pending, self._recording.finish)
        return self._last

    def start_profile(self) -> None:
        """Record every step from the next one on, in place of those of the configuration.

        Raises:
            QuireError: a recording is running.
        """
        self._settle_last()
        if self._recording.is_running:
            raise QuireError(
                "steps are being recorded already: stop_profile() ends that; with profile_steps=0 "
                "nothing is recorded before start_profile()"
            )
        self._recording.start()
        self._first, self._end = self._num_steps, sys.maxsize

    def stop_profile(self) -> None:
        """Write the trace and the table of what was recorded, launched steps to their end.

        Raises:
            QuireError: nothing is being recorded.
        """
        self._settle_last()
        if not self._recording.is_running:
            raise QuireError("no steps are being recorded: call start_profile() before")
        self._end = self._num_steps
        self._recording.finish()

    def _settle_last(self) -> None:
        if self._last is not None:
            self._last.settle()
            self._last = None


class LastStep:
    """The last step recorded: once it is over, so is the recording."""

    def __init__(self, pending: PendingStep, finish: Callable[[], None]) -> None:
        self._pending, self._finish = pending, finish
        self._result: StepResult | None = None
        self._error: Exception | None = None

    def settle(self) -> None:
        """Wait for the step, whatever comes of it."""
        if self._result is not None or self._error is not None:
            return
        try:
            self._result = self._pending.wait()
        except Exception as error:  # kept for who waits for the result
            self._error = error
        self._finish()

    def wait(self) -> StepResult:
        """Return what the step computed."""
        self.settle()
        if self._error is not None:
            raise self._error
        assert self._result is not None, "a settled step has a result or an error"
        return self._result


class Recording:
    """One trace: a file for chrome://tracing or Perfetto, and a table beside it."""

    def __init__(self, folder: Path, *, is_cuda: bool) -> None:
        self._folder, self._is_cuda = folder, is_cuda
        self._profile: profile | None = None
        self._num_steps = 0
        self._num_tokens = 0

    @property
    def is_running(self) -> bool:
        return self._profile is not None

    def start(self) -> None:
        """Record from now on."""
        self._num_steps = self._num_tokens = 0
        activities = [ProfilerActivity.CPU]
        if self._is_cuda:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def note(self, num_tokens: int) -> None:
        """Count a step that was launched."""
        self._num_steps += 1
        self._num_tokens += num_tokens

    def finish(self) -> None:
        """Write the trace and print the table; does nothing unless it records."""
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        if self._is_cuda:
            torch.cuda.synchronize()
        recorded.stop()
        path = self._free_path()
        recorded.export_chrome_trace(str(path))
        table = kernel_table(recorded.key_averages(), is_cuda=self._is_cuda)
        text = f"{self._num_steps} steps of {self._num_tokens} tokens in {path}\n{table}\n"
        path.with_name(path.name.removesuffix(_SUFFIX) + ".txt").write_text(text)
        sys.stderr.write(text)

    def _free_path(self) -> Path:
        """Make a file that no trace has yet: several engines may write to one folder."""
        for number in itertools.count():
            path = self._folder / f"quire-{number}{_SUFFIX}"
            with contextlib.suppress(FileExistsError):
                path.touch(exist_ok=False)
                return path
        raise AssertionError("there is always another number")


_SUFFIX = ".pt.trace.json.gz"
"""By which TensorBoard knows a trace."""


def kernel_table(events: Sequence[Any], *, is_cuda: bool) -> str:
    """Return the kernels (on a CPU: the operators) that took most of the time, longest first.

    `events` are torch's averages. On a CPU `step` is what no operator accounts for: the scheduling
    of operators, and kernels in C, of which torch does not know.
    """
    rows = sorted((_row(event, is_cuda=is_cuda) for event in events), reverse=True)
    rows = [row for row in rows if row[0] > 0.0]
    total_us = sum(row[0] for row in rows) or 1.0
    lines = [f"{'ms':>10} {'share':>7} {'calls':>7} {'mean us':>10}  name"]
    lines += [
        f"{us / 1e3:10.3f} {us / total_us:7.1%} {calls:7} {us / calls:10.1f}  {name[:100]}"
        for us, calls, name in rows[:NUM_ROWS]
    ]
    return "\n".join([*lines, f"{total_us / 1e3:10.3f}  in all"])


def _row(event: Any, *, is_cuda: bool) -> tuple[float, int, str]:
    """Return the time in us, the calls and the name of one kernel or operator; else no time."""
    if not is_cuda:
        return event.self_cpu_time_total, event.count, event.key
    is_kernel = event.device_type.name == "CUDA" and event.key != STEP
    return event.self_device_time_total if is_kernel else 0.0, event.count, event.key


def _folder(config: ProfilingConfig) -> Path:
    folder = Path(config.profile or "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"profile={config.profile}: no folder for traces: {error}") from None
    return folder
