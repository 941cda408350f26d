"""What the columns of `quire top` are."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

from quire.top import words
from quire.top.board import Board
from quire.top.columns import Column
from quire_router.replica_reports import ReplicaReport, RequestReport

RowT = TypeVar("RowT")

BAD_STATES = frozenset(("connecting", "unhealthy", "unresponsive"))
MIN_NAME = 8
MIN_LONG_NAME = 16
MIN_NUMBER = 7
ROOM_FOR_WORDS = 80
"""Narrower lines say why in one word."""
MAX_SPARK = 60
MAX_WHY = 80


def replica_columns(board: Board, *, is_ascii: bool) -> list[Column[ReplicaReport]]:
    """Return the columns of the replicas; one scale for the rates of all."""
    rates = [rate for replica in board.replicas for rate in board.rates(replica.replica)]
    scale = max(words.MIN_SCALE, max(rates, default=0.0))
    bars = words.ASCII_BARS if is_ascii else words.BARS
    return [
        _name([replica.replica for replica in board.replicas], lambda replica: replica.replica),
        Column(
            title="State",
            rank=1,
            least=8,
            most=max(map(len, words.STATES.values())),
            show=lambda replica, _: words.STATES.get(replica.state, replica.state),
            style=_state_style,
            is_text=True,
        ),
        _number("Running", 2, lambda replica: f"{replica.running:,}"),
        _number("Waiting", 3, lambda replica: f"{replica.waiting:,}", _waiting_style),
        _number("Tok/s", 4, lambda replica: words.rate(replica.tokens_per_s)),
        Column(
            title="last {} s",
            rank=5,
            least=9,
            most=MAX_SPARK,
            show=lambda replica, width: words.sparkline(
                board.rates(replica.replica), width, scale, bars
            ),
            style=lambda _: "cyan",
            is_text=True,
        ),
        _number("KV use", 6, lambda replica: words.percent(replica.kv_usage)),
        _number("Cached", 7, _share_cached),
        _number("Step", 8, lambda replica: words.duration(replica.decode_step_s or None)),
        _number("Queued tokens", 9, lambda replica: f"{replica.queued_tokens:,}"),
    ]


def request_columns(requests: Sequence[RequestReport], width: int) -> list[Column[RequestReport]]:
    """Return the columns of the last requests, for lines of so many characters."""
    return [
        Column(
            title="Time",
            rank=1,
            least=8,
            most=8,
            show=lambda request, _: time.strftime("%H:%M:%S", time.localtime(request.at)),
            is_text=True,
        ),
        _name([request.replica for request in requests], lambda request: request.replica),
        Column(
            title="Outcome",
            rank=2,
            least=9,
            most=max(map(len, words.OUTCOMES.values())),
            show=lambda request, _: words.OUTCOMES.get(request.outcome, request.outcome),
            style=_outcome_style,
            is_text=True,
        ),
        Column(
            title="Why",
            rank=3,
            least=max(map(len, words.REASONS.values())) if width >= ROOM_FOR_WORDS else 6,
            most=max((len(words.why(request, MAX_WHY)) for request in requests), default=0),
            show=words.why,
            is_text=True,
        ),
        _number("First reply", 4, lambda request: words.duration(request.first_response_s)),
        _number("Prompt", 5, lambda request: f"{request.prompt_tokens:,}"),
        _number("Cached", 6, lambda request: f"{_num_cached(request):,}"),
        _number("Tokens", 7, lambda request: _count(request.completion_tokens)),
        _number("In all", 8, lambda request: words.duration(request.total_s)),
    ]


def is_bad(replica: ReplicaReport) -> bool:
    """Tell whether requests cannot be sent there, though they should."""
    return replica.state in BAD_STATES or replica.breaker == "open"


def _name(names: Iterable[str], read: Callable[[RowT], str]) -> Column[RowT]:
    known = sorted(set(names))
    longest = max(map(len, known), default=0)

    @cache
    def short(width: int) -> dict[str, str]:
        return words.abbreviations(known, width)

    return Column(
        title="Replica",
        rank=0,
        least=max(MIN_NAME, min(MIN_LONG_NAME, longest)),
        most=max(MIN_NAME, longest),
        show=lambda row, width: short(width)[read(row)],
        is_text=True,
    )


def _number(
    title: str,
    rank: int,
    read: Callable[[RowT], str],
    style: Callable[[RowT], str] = lambda _: "",
) -> Column[RowT]:
    width = max(MIN_NUMBER, len(title))
    return Column(
        title=title,
        rank=rank,
        least=width,
        most=width,
        show=lambda row, _: read(row),
        style=style,
    )


def _share_cached(replica: ReplicaReport) -> str:
    if not replica.prompt_tokens:
        return "-"
    return words.percent(replica.cached_tokens / replica.prompt_tokens)


def _num_cached(request: RequestReport) -> int:
    expected = request.expected_cached_tokens
    return expected if request.cached_tokens is None else request.cached_tokens


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _state_style(replica: ReplicaReport) -> str:
    if is_bad(replica):
        return "bold red"
    return "green" if replica.state == "ready" else "yellow"


def _waiting_style(replica: ReplicaReport) -> str:
    return "bold yellow" if replica.waiting else ""


def _outcome_style(request: RequestReport) -> str:
    if request.outcome in ("running", "done"):
        return "green"
    return "" if request.outcome == "cancelled" else "red"
