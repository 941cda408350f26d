"""What `quire top` shows of what a router tells, in terminals of any size."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from quire.top import words
from quire.top.board import Board, News
from quire.top.options import TopConfig
from quire.top.view import Size, once, screen
from quire_engine.errors import ConfigError

URL = "http://localhost:8000"
REPLICA: dict[str, Any] = {
    "replica": "engine-0:50051",
    "state": "ready",
    "retired": False,
    "breaker": "closed",
    "index_mode": "exact",
    "index_blocks": 812,
    "index_age_s": 0.4,
    "model": "demo",
    "device": "cuda",
    "running": 3,
    "waiting": 1,
    "in_flight": 4,
    "queued_tokens": 1200,
    "kv_usage": 0.31,
    "kv_blocks": 8192,
    "tokens_per_s": 412.0,
    "prefill_tokens_per_s": 8100.0,
    "decode_step_s": 0.0072,
    "requests": 90,
    "prompt_tokens": 64000,
    "cached_tokens": 41000,
    "expected_cached_tokens": 41200,
    "preemptions": 0,
    "failures": {},
    "connections": 1,
    "history": None,
}
REQUEST: dict[str, Any] = {
    "number": 90,
    "at": 1789999999.871,
    "replica": "engine-0:50051",
    "reason": "cached",
    "attempt": 1,
    "waited_s": 0.0,
    "prompt_tokens": 900,
    "expected_cached_tokens": 880,
    "cached_tokens": 880,
    "completion_tokens": None,
    "first_response_s": 0.021,
    "total_s": None,
    "outcome": "running",
    "num_candidates": 2,
    "candidates": [],
}


def news(
    replicas: list[dict[str, Any]], requests: list[dict[str, Any]] | None = None, parked: int = 0
) -> News:
    whole = {"at": 1.0, "parked": parked, "replicas": replicas, "requests": requests or []}
    return News.parse(json.dumps(whole))


def board_of(*replicas: dict[str, Any], requests: list[dict[str, Any]] | None = None) -> Board:
    board = Board()
    board.take(news(list(replicas), requests), 10.0, is_snapshot=True)
    return board


def drawn(board: Board, columns: int = 120, rows: int = 30, **options: Any) -> list[str]:
    size = Size(width=columns, height=rows, is_ascii=options.pop("is_ascii", False))
    return screen(board, URL, 10.0, size, **options).plain.split("\n")


def test_a_replica_is_one_line_of_what_the_router_knows() -> None:
    history = {"interval_s": 1.0, "tokens_per_s": [0, 206, 412], "waiting": [], "kv_usage": []}
    [row] = [
        line
        for line in drawn(board_of(REPLICA | {"history": history}), columns=160)
        if line.startswith("engine-0")
    ]

    assert row.split() == [
        *("engine-0:50051", "ready", "3", "1", "412", "▁▅█", "31%", "64%", "7.2", "ms", "1,200")
    ]


def test_a_request_says_where_it_went_why_and_what_became_of_it() -> None:
    [row] = [line for line in drawn(board_of(REPLICA, requests=[REQUEST])) if "as soon as" in line]

    assert "engine-0:50051  running" in row
    assert "as soon as elsewhere, more cached" in row
    assert row.split()[-7:] == ["cached", "21", "ms", "900", "880", "-", "-"]


def test_what_is_out_of_the_ordinary_is_told_and_comes_first() -> None:
    bad = {
        "replica": "engine-1:50051",
        "state": "unresponsive",
        "breaker": "open",
        "preemptions": 2,
        "failures": {"lost": 3},
    }

    lines = drawn(board_of(REPLICA, REPLICA | bad))

    assert lines[3].startswith("Replica")
    assert lines[4].startswith("engine-1:50051  does not respond")
    assert lines[5] == (
        "  failed too often: requests are kept away for a while · 2 preemptions · 3 lost"
    )
    assert lines[6].startswith("engine-0:50051  ready")


def test_updates_extend_the_rates_and_replace_requests_by_number() -> None:
    board = board_of(REPLICA, requests=[REQUEST])

    board.take(
        news([REPLICA | {"tokens_per_s": 7.0}], [REQUEST | {"outcome": "done"}]),
        11.0,
        is_snapshot=False,
    )

    assert list(board.rates("engine-0:50051")) == [412.0, 7.0]
    assert [request.outcome for request in board.requests] == ["done"]


def test_a_snapshot_forgets_the_requests_of_the_router_before() -> None:
    board = board_of(REPLICA, requests=[REQUEST])

    board.take(news([REPLICA], [REQUEST | {"number": 1}]), 11.0, is_snapshot=True)

    assert [request.number for request in board.requests] == [1]


def test_no_more_requests_are_kept_than_the_router_keeps() -> None:
    board = board_of(REPLICA)

    for number in range(200):
        board.take(news([], [REQUEST | {"number": number}]), 11.0, is_snapshot=False)

    assert [request.number for request in board.requests] == list(range(199, 149, -1))


def test_what_is_stale_says_so_and_how_old_it_is() -> None:
    board = board_of(REPLICA)

    board.lose("nothing listens", 12.0, retry_in_s=2.0)
    lines = screen(board, URL, 13.0, Size(width=80, height=20)).plain.split("\n")

    assert lines[2] == "connection lost, retrying in 1 s; this is 3 s old"
    assert lines[3] == "nothing listens"
    assert any(line.startswith("engine-0:50051") for line in lines)


@given(
    columns=st.integers(1, 250),
    rows=st.integers(1, 80),
    num_replicas=st.integers(0, 120),
    first=st.integers(0, 130),
    is_lost=st.booleans(),
)
def test_no_terminal_is_too_small(
    columns: int, rows: int, num_replicas: int, first: int, is_lost: bool
) -> None:
    names = [f"engine-{number}.engines.default.svc:50051" for number in range(num_replicas)]
    failing = {"failures": {"lost": 1}}
    board = board_of(
        *(REPLICA | {"replica": name} | (failing if name.endswith("1") else {}) for name in names),
        requests=[REQUEST | {"number": number} for number in range(20)],
    )
    if is_lost:
        board.lose("x" * 300, 10.0, retry_in_s=1.0)

    lines = drawn(board, columns=columns, rows=rows, first=first)

    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns


def test_narrow_terminals_leave_out_what_matters_least() -> None:
    narrow = drawn(board_of(REPLICA, requests=[REQUEST]), columns=52)

    assert narrow[3].split() == ["Replica", "State", "Running", "Waiting", "Tok/s"]
    assert any(line.split()[1:] == ["engine-0:50051", "running", "cached"] for line in narrow)


def test_replicas_that_do_not_fit_are_counted_and_can_be_scrolled_to() -> None:
    board = board_of(*(REPLICA | {"replica": f"engine-{number:03}"} for number in range(100)))

    top, further = drawn(board, rows=24), drawn(board, rows=24, first=90)

    assert "engine-000" in top[4]
    assert top[-1].endswith("replicas not shown")
    assert "engine-090" in further[4]


def test_once_prints_every_replica_and_request() -> None:
    replicas = [REPLICA | {"replica": f"engine-{number:03}"} for number in range(100)]
    requests = [REQUEST | {"number": number} for number in range(50)]

    whole = once(board_of(*replicas, requests=requests), URL, 10.0, Size(width=9999, height=0))

    assert sum(line.startswith("engine-") for line in whole.plain.split("\n")) == 100
    assert whole.plain.count("as soon as elsewhere") == 50


def test_a_terminal_without_unicode_gets_ascii() -> None:
    board = board_of(REPLICA, REPLICA | {"replica": "x" * 99}, requests=[REQUEST])

    assert "".join(drawn(board, columns=70, is_ascii=True)).isascii()


def test_all_that_is_strange_to_this_version_is_shown_as_it_is() -> None:
    board = board_of(
        REPLICA | {"state": "napping", "new": 1}, requests=[REQUEST | {"reason": "mood"}]
    )

    text = "\n".join(drawn(board))

    assert "napping" in text
    assert "mood" in text


@pytest.mark.parametrize("data", ["{}", "[]", "<html>", '{"at": 1, "replicas": [{}]}', ""])
def test_what_is_no_report_is_refused(data: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|[Mm]issing|[Ee]xpected|truncated"):
        News.parse(data)


@given(
    names=st.sets(st.text("ab./:-0", min_size=1, max_size=30), max_size=6),
    width=st.integers(3, 40),
)
def test_names_are_never_wider_than_allowed(names: set[str], width: int) -> None:
    short = words.abbreviations(names, width)

    assert short.keys() == names
    assert all(len(text) <= width for text in short.values())
    assert all(text == name for name, text in short.items() if max(map(len, names)) <= width)


@pytest.mark.parametrize(
    ("names", "width", "shown"),
    [
        (
            ["engine-0.svc.cluster:50051", "engine-1.svc.cluster:50051"],
            12,
            ["engine-0…", "engine-1…"],
        ),
        (["unix:/tmp/quire/one.sock", "unix:/tmp/quire/two.sock"], 10, ["…one.sock", "…two.sock"]),
        (["unix:/tmp/quire/one.sock", "unix:/tmp/quire/two.sock"], 8, ["…one…", "…two…"]),
        (["10.244.1.17:50051", "10.244.2.9:50051"], 14, ["10.244.1.17…", "10.244.2.9…"]),
        (["a-single-very-long-name:50051"], 12, ["a-sing…50051"]),
    ],
)
def test_long_names_keep_what_tells_them_apart(
    names: list[str], width: int, shown: list[str]
) -> None:
    assert list(words.abbreviations(names, width).values()) == shown


def test_a_sparkline_shows_the_last_values_on_the_scale() -> None:
    assert words.sparkline([100, 0, 1, 50, 100], 4, 100.0) == "▁▂▅█"
    assert words.sparkline([5], 3, 10.0, words.ASCII_BARS) == "  +"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"url": "localhost:8000"},
            "url must start with http:// or https://, not 'localhost:8000'",
        ),
        ({"url": "http://"}, "url must be http://HOST:PORT"),
        ({"url": "http://host:99999"}, "port to 65535, not 'http://host:99999'"),
        ({"json": True}, "--json goes with --once"),
    ],
)
def test_wrong_options_are_refused_with_what_would_be_right(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        TopConfig(**options)
