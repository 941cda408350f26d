from itertools import pairwise

import pytest

from quire_operator.plan import Manifest
from quire_operator.runtime.report_pace import ReportPace, num_starting


def key(number: int) -> tuple[str, str]:
    return "default", f"llm-{number}"


def pace_of(num_deployments: int) -> ReportPace:
    return ReportPace(15.0, num_starting=lambda: num_deployments)


def test_the_first_look_is_waited_for_once_a_generation() -> None:
    pace = pace_of(1)

    waits = [pace.wait_for_first_look(key(0), generation) for generation in (1, 1, 2)]

    assert waits == [1.0, None, 1.0]


@pytest.mark.parametrize(
    ("num_deployments", "interval_s"), [(1, 15.0), (30, 15.0), (100, 50.0), (1000, 300.0)]
)
def test_progress_waits_longer_the_more_start(num_deployments: int, interval_s: float) -> None:
    pace = pace_of(num_deployments)
    pace.note_reported(key(0), 100.0)

    assert pace.wait_with_progress(key(0), 101.0) == interval_s - 1.0
    assert pace.wait_with_progress(key(0), 100.0 + interval_s) is None


def test_what_was_never_reported_does_not_wait() -> None:
    assert pace_of(1).wait_with_progress(key(0), 0.0) is None


def test_progress_of_all_is_told_twice_a_second_at_most_and_nobody_starves() -> None:
    pace = pace_of(1)
    due = dict.fromkeys(range(1000), 0.0)
    told_at: list[float] = []

    while due:
        number, now = min(due.items(), key=lambda item: item[1])
        wait_s = pace.wait_with_progress(key(number), now)
        if wait_s is None:
            pace.note_told(key(number))
            told_at.append(now)
            del due[number]
        else:
            assert wait_s > 0
            due[number] = now + wait_s

    assert min(later - earlier for earlier, later in pairwise(told_at)) >= 0.5
    assert max(told_at) < 1000.0


def test_a_deployment_that_is_gone_holds_nobody_up() -> None:
    pace = pace_of(1)
    for number in range(100):
        pace.note_reported(key(number), 0.0)
        pace.wait_with_progress(key(number), 0.0)
    assert pace.wait_with_progress(key(0), 14.0) == 25.0
    for number in range(1, 100):
        pace.forget(key(number))

    assert pace.wait_with_progress(key(0), 14.0) == 1.0
    assert pace.wait_for_first_look(key(1), 1) == 1.0


def test_those_start_that_have_no_status_or_roll_out() -> None:
    def deployment(reason: str) -> Manifest:
        return {"status": {"conditions": [{"type": "Progressing", "reason": reason}]}}

    reasons = ("NewRevision", "RolloutComplete", "Suspended", "ProgressDeadlineExceeded")

    assert num_starting([{}, {"status": {}}, *map(deployment, reasons)]) == 3
