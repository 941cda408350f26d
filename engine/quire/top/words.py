"""Numbers and states as people read them. Pure."""

import itertools
import re
from collections.abc import Iterable, Sequence

from quire_router.replica_reports import ReplicaReport, RequestReport

STATES = {
    "ready": "ready",
    "connecting": "not connected",
    "draining": "draining",
    "unhealthy": "unhealthy",
    "unresponsive": "does not respond",
}
REASONS = {
    "only": "the only one that could take it",
    "cost": "least predicted time",
    "cached": "as soon as elsewhere, more cached",
    "active": "as good as others, fewer requests",
    "turn": "as good as others: its turn",
}
OUTCOMES = {"refused": "wrong request", "lost": "replica lost", "fault": "engine failed"}
BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = ".:-=+*#@"
MIN_SCALE = 10.0
"""Tokens per second that a full bar stands for at least: noise is no mountain."""

ASCII = str.maketrans({"·": "-", "…": "~"})


def rate(value: float) -> str:
    """Return a rate, small ones in three digits."""
    return f"{value:.3g}" if value < 10 else f"{value:,.0f}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{share * 100:.1f}%" if 0 < share < 0.1 else f"{share * 100:.0f}%"


def duration(seconds: float | None) -> str:
    """Return a duration in three digits with its unit; None is a dash."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def plural(number: int, singular: str) -> str:
    """Return a number of things."""
    return f"{number:,} {singular}{'' if number == 1 else 's'}"


def abbreviations(names: Iterable[str], width: int) -> dict[str, str]:
    """Return names of at most this width, still different from each other where that is possible.

    What all of them end with goes first, then what all begin with, then the middle of each.
    """
    parts = {name: re.split(r"(?<=[/.:])|(?=[/.:])", name) for name in names}
    head = "".join(_common(parts.values()))
    tail = "".join(reversed(_common([each[::-1] for each in parts.values()])))
    if len(parts) < 2 or max(map(len, parts)) <= width:
        head = tail = ""
    ways = (
        {name: name for name in parts},
        {name: name[: len(name) - len(tail)] + "…" for name in parts},
        {name: "…" + name[len(head) :] for name in parts},
        {name: "…" + name[len(head) : len(name) - len(tail)] + "…" for name in parts},
    )
    for way in ways:
        if max(map(len, way.values()), default=0) <= width:
            return way
    return {name: _without_middle(text, width) for name, text in ways[-1 if head else 0].items()}


def _common(sequences: Iterable[Sequence[str]]) -> list[str]:
    """Return what all begin with."""
    heads = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*sequences, strict=False))
    return [each[0] for each in heads]


def _without_middle(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def sparkline(values: Sequence[float], width: int, scale: float, bars: str = BARS) -> str:
    """Return the last `width` values as bars of which a full one is `scale`; 0 is the lowest."""
    top = len(bars) - 1
    levels = [min(top, -int(-value * top // scale)) for value in list(values)[-width:]]
    return "".join(bars[max(level, 0)] for level in levels).rjust(width)


def totals(replicas: Sequence[ReplicaReport], parked: int) -> str:
    """Return one line about all of them."""
    num_ready = sum(replica.state == "ready" for replica in replicas)
    parts = [
        f"{num_ready} of {plural(len(replicas), 'replica')} ready",
        f"{sum(replica.running for replica in replicas):,} running",
        f"{sum(replica.waiting for replica in replicas):,} waiting",
        f"{rate(sum(replica.tokens_per_s for replica in replicas))} tok/s",
    ]
    if parked:
        parts.append(f"{plural(parked, 'request')} waiting for a replica")
    return " · ".join(parts)


def notes(replica: ReplicaReport) -> str:
    """Return what is out of the ordinary, in words; empty where nothing is."""
    parts = []
    if replica.retired:
        parts.append("leaving: finishes what it has begun")
    if replica.breaker == "open":
        parts.append("failed too often: requests are kept away for a while")
    if replica.state == "ready" and replica.index_mode == "degraded":
        parts.append("its cache is guessed from what was sent there")
    if replica.index_mode == "off":
        parts.append("caches no prefixes")
    if replica.preemptions:
        parts.append(plural(replica.preemptions, "preemption"))
    parts += [f"{number:,} {reason}" for reason, number in replica.failures.items()]
    return " · ".join(parts)


def why(request: RequestReport, width: int) -> str:
    """Return why a request went where it went; where there is no room, only the reason's name."""
    reason = REASONS.get(request.reason, request.reason)
    parts = [reason if len(reason) <= width else request.reason]
    if request.attempt > 1:
        parts.append(f"attempt {request.attempt}")
    if request.waited_s >= 0.05:
        parts.append(f"waited {duration(request.waited_s)}")
    return ", ".join(parts)
