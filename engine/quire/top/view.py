"""What `quire top` shows of a board: a whole terminal, or everything once. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.text import Text

from quire.top import words
from quire.top.board import Board
from quire.top.columns import fit, heads, line
from quire.top.fields import is_bad, replica_columns, request_columns
from quire_router.replica_reports import ReplicaReport

MIN_REQUESTS = 3
"""Requests that are shown even where not all replicas fit."""
HELP = "q quits, arrows scroll"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The terminal, and what it can write."""

    width: int
    height: int
    is_ascii: bool = False


def screen(board: Board, url: str, now: float, size: Size, *, first: int = 0) -> Text:
    """Return what fills the terminal; the replicas begin with the one at place `first`."""
    header = [*_header(board, url, now), Text()]
    # Both tables have titles; a line between them and one for the help are there in any case.
    room = max(0, size.height - len(header) - 4)
    shown, num_shown = _fitting(_ordered(board)[first:], max(1, room - MIN_REQUESTS))
    body = [*_replica_lines(board, shown, size), Text(), *_request_lines(board, size)]
    if board.trouble is not None:
        for each in body:
            each.stylize("dim")
    lines = [*header, *body][: max(0, size.height - 1)]
    lines += [Text()] * (size.height - 1 - len(lines))
    return _joined([*lines, _help(len(board.replicas) - num_shown)], size)


def once(board: Board, url: str, now: float, size: Size) -> Text:
    """Return everything, however long it is."""
    replicas = _replica_lines(board, _ordered(board), size)
    lines = [*_header(board, url, now), Text(), *replicas]
    if board.requests:
        lines += [Text(), *_request_lines(board, size)]
    return _joined(lines, size)


def _header(board: Board, url: str, now: float) -> list[Text]:
    models = sorted({replica.model for replica in board.replicas if replica.model})
    title = Text(" · ".join([url, *models]), style="bold")
    lines = [title, Text(words.totals(board.replicas, board.parked))]
    if board.trouble is not None:
        retry_s = max(0.0, board.trouble.retry_at - now)
        age = "" if board.heard_at is None else f"; this is {now - board.heard_at:.0f} s old"
        text = f"connection lost, retrying in {retry_s:.0f} s{age}"
        lines += [Text(text, style="bold red"), Text(board.trouble.reason, style="red")]
    return lines


def _help(num_hidden: int) -> Text:
    hidden = f" · {words.plural(num_hidden, 'replica')} not shown" if num_hidden else ""
    return Text(HELP + hidden, style="dim")


def _ordered(board: Board) -> list[ReplicaReport]:
    """Return the replicas, those in trouble first: they are what one looks for."""
    return sorted(board.replicas, key=lambda replica: not is_bad(replica))


def _fitting(replicas: Sequence[ReplicaReport], room: int) -> tuple[list[ReplicaReport], int]:
    """Return the first replicas that fit into so many lines, and how many they are."""
    shown: list[ReplicaReport] = []
    for replica in replicas:
        room -= 2 if words.notes(replica) else 1
        if room < 0 and shown:
            break
        shown.append(replica)
    return shown, len(shown)


def _replica_lines(board: Board, shown: Iterable[ReplicaReport], size: Size) -> list[Text]:
    if not board.replicas:
        return [Text("no replicas: the router knows of none", style="yellow")]
    columns = fit(replica_columns(board, is_ascii=size.is_ascii), size.width)
    lines = [heads(columns)]
    for replica in shown:
        lines.append(line(replica, columns))
        if text := words.notes(replica):
            lines.append(Text(f"  {text}", style="yellow"))
    return lines


def _request_lines(board: Board, size: Size) -> list[Text]:
    requests = board.requests
    if not requests:
        return [Text("no requests yet", style="dim")]
    columns = fit(request_columns(requests, size.width), size.width)
    return [heads(columns), *(line(request, columns) for request in requests)]


def _joined(lines: Iterable[Text], size: Size) -> Text:
    whole = Text("\n", no_wrap=True).join(_cut(each, size) for each in lines)
    whole.no_wrap = True
    return whole


def _cut(text: Text, size: Size) -> Text:
    text.rstrip()
    text.truncate(size.width, overflow="ellipsis")
    if size.is_ascii:
        text.plain = text.plain.translate(words.ASCII)
    return text
