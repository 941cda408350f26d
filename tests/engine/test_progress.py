"""Progress of long work: bars where they can be seen, a bounded number of lines elsewhere."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from quire_engine.progress import VARIABLE, DownloadProgress, LineProgress, bar, has_bars
from quire_engine.rpc.logs import JsonFormatter
from terminal import on_terminal

WORK = """
import time
from quire_engine.progress import bar
with bar(total=4, desc="Loading", unit="B") as progress:
    for _ in range(4):
        time.sleep(0.12)
        progress.update(1)
print("done")
"""


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def json_logs() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


def test_lines_say_how_far_how_fast_and_how_long_still(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with LineProgress(desc="Loading", total=400, unit="B", clock=clock) as progress:
        clock.now += 5
        progress.update(100)

    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Loading: 25% (100/400), ")
    assert first.endswith(" left")
    assert "B/s, " in first
    assert last.startswith("Loading: 25% (100/400)")


def test_work_without_a_known_end_has_no_share(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with LineProgress(desc="Reading", clock=clock) as progress:
        clock.now += 5
        progress.update(7)

    assert capsys.readouterr().err.splitlines()[0].startswith("Reading: 7, ")


def test_short_work_is_silent_unless_its_end_is_wanted(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for always_ends in (False, True):
        with LineProgress(total=2, desc="x", clock=clock, always_ends=always_ends) as progress:
            progress.update(2)

    captured = capsys.readouterr()
    assert [line[:13] for line in captured.err.splitlines()] == ["x: 100% (2/2)"]
    assert captured.out == ""


@given(steps_s=st.lists(st.floats(0.001, 3000), max_size=300))
def test_the_number_of_lines_grows_slower_than_the_work(steps_s: list[float]) -> None:
    clock, lines = Clock(), 0

    class Counted(LineProgress):
        def _write(self, msg: str | None = None) -> None:
            nonlocal lines
            lines += 1

    with Counted(total=len(steps_s), clock=clock) as progress:
        for step_s in steps_s:
            clock.now += step_s
            progress.update(1)

    took_s = clock.now - 100.0
    # Every 5 s until 50 s, then each comes a tenth later than the one before; and the last.
    assert lines <= took_s / 5 + 1
    if took_s > 50:
        assert 1.1 ** (lines - 12) * 50 <= took_s * 1.01


def test_bars_within_each_other_are_lines_all_the_same(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        LineProgress(total=2, desc="outer", clock=clock) as outer,
        LineProgress(total=2, desc="inner", clock=clock) as inner,
    ):
        clock.now += 6
        inner.update(1)
        outer.update(1)

    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert "\x1b" not in shown
    assert [line.split(":")[0] for line in shown.splitlines()] == ["inner", "outer"] * 2


def test_among_json_logs_lines_are_json(
    clock: Clock, json_logs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with LineProgress(total=4, desc="Loading", clock=clock, always_ends=True) as progress:
        progress.update(4)

    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["level"] == "info"
    assert record["message"].startswith("Loading: 100% (4/4)")


def test_a_supervised_process_draws_bars_where_its_output_is_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not has_bars()

    monkeypatch.setenv(VARIABLE, "bar")

    assert has_bars()
    with bar(total=1, desc="x") as progress:
        progress.update(1)
    assert "\rx: 100%|" in capsys.readouterr().err


def test_a_bar_would_break_json_logs(monkeypatch: pytest.MonkeyPatch, json_logs: None) -> None:
    monkeypatch.setenv(VARIABLE, "bar")

    assert not has_bars()


def test_of_a_download_the_bytes_that_are_there_are_shown_alone(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        DownloadProgress(desc="Downloading bytes", total=0, unit="B", clock=clock) as transfer,
        DownloadProgress(desc="Reconstructing", total=0, unit="B", clock=clock) as whole,
        DownloadProgress(desc="Fetching 2 files", total=2, clock=clock) as files,
    ):
        whole.total = 1000
        clock.now += 6
        for progress in (transfer, whole, files):
            progress.update(500)
            progress.set_description("changed")

    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Downloading: 50% (500/1000)"] * 2


async def test_on_a_terminal_a_bar_moves_and_stdout_is_left_alone() -> None:
    with on_terminal(sys.executable, "-c", WORK) as terminal:
        assert await terminal.ended() == 0

    assert terminal.written.count("\rLoading:") > 2
    assert re.search(r"\| 4/4 \[\d\d:\d\d<00:00", terminal.written)
    assert terminal.written.endswith("done\r\n")


def test_without_a_terminal_only_the_result_is_on_stdout() -> None:
    ran = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)

    assert (ran.stdout, ran.stderr) == ("done\n", "")
