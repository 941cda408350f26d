from itertools import pairwise

from quire_operator.runtime.report_pace import ReportPace

PACE_S = 15.0


def key(number: int) -> tuple[str, str]:
    return "default", f"llm-{number}"


def test_the_first_look_is_waited_for_once_a_generation() -> None:
    pace = ReportPace(PACE_S)

    waits = [pace.wait_for_first_look(key(0), generation) for generation in (1, 1, 2)]

    assert waits == [1.0, None, 1.0]


def test_progress_waits_until_its_interval_is_over() -> None:
    pace = ReportPace(PACE_S)
    pace.note_reported(key(0), 100.0)

    assert pace.wait_with_progress(key(0), 105.0) == 10.0
    assert pace.wait_with_progress(key(0), 115.0) is None


def test_what_was_never_reported_does_not_wait() -> None:
    assert ReportPace(PACE_S).wait_with_progress(key(0), 0.0) is None


def test_a_thousand_at_once_tell_of_progress_twice_a_second_together() -> None:
    pace = ReportPace(PACE_S)
    due: dict[int, float] = {}
    for number in range(1000):
        pace.note_reported(key(number), 0.0)
        due[number] = pace.wait_with_progress(key(number), 0.0) or 0.0
    told_at: list[float] = []

    while due:
        number, now = min(due.items(), key=lambda item: item[1])
        wait_s = pace.wait_with_progress(key(number), now)
        if wait_s is None:
            pace.note_reported(key(number), now)
            pace.note_told(key(number))
            told_at.append(now)
            del due[number]
        else:
            assert wait_s > 0
            due[number] = now + wait_s

    assert min(told_at) >= PACE_S
    assert min(later - earlier for earlier, later in pairwise(told_at)) >= 0.5
    assert max(told_at) < 1000.0


def test_a_deployment_that_is_gone_holds_nobody_up() -> None:
    pace = ReportPace(PACE_S)
    for number in range(100):
        pace.note_reported(key(number), 0.0)
        pace.wait_with_progress(key(number), 0.0)
    assert pace.wait_with_progress(key(0), 14.0) == 25.0
    for number in range(1, 100):
        pace.forget(key(number))

    assert pace.wait_with_progress(key(0), 14.0) == 1.0
    assert pace.wait_for_first_look(key(1), 1) == 1.0
