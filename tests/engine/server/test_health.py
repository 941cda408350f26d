from dataclasses import replace

import pytest

from quire_engine.server.health import NOT_READY, Vitals, is_alive, is_serving

WELL = Vitals(is_ready=True, is_draining=False, is_dead=False, is_working=True, last_progress_s=0.0)


def test_an_engine_that_works_is_serving() -> None:
    assert is_serving(WELL, hang_timeout_s=10)
    assert is_serving(replace(WELL, last_progress_s=9.9), hang_timeout_s=10)


def test_an_idle_engine_is_serving_however_long_it_was_idle() -> None:
    assert is_serving(replace(WELL, is_working=False, last_progress_s=99.0), hang_timeout_s=10)


@pytest.mark.parametrize(
    "vitals",
    [
        NOT_READY,
        replace(WELL, is_draining=True),
        replace(WELL, is_dead=True),
        replace(WELL, last_progress_s=10.1),
    ],
    ids=["loading", "draining", "dead", "hung"],
)
def test_an_engine_that_will_not_answer_is_not_serving(vitals: Vitals) -> None:
    assert not is_serving(vitals, hang_timeout_s=10)


@pytest.mark.parametrize(
    ("vitals", "alive"),
    [
        (NOT_READY, True),
        (WELL, True),
        (replace(WELL, is_draining=True), True),
        (replace(WELL, is_working=False, last_progress_s=99.0), True),
        (replace(WELL, is_draining=True, last_progress_s=10.1), False),
        (replace(WELL, is_dead=True), False),
    ],
    ids=["loading", "working", "draining", "idle", "hung while draining", "dead"],
)
def test_only_what_a_restart_would_help_is_not_alive(vitals: Vitals, alive: bool) -> None:
    assert is_alive(vitals, hang_timeout_s=10) is alive
