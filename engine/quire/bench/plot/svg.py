"""Axes, bars and curves as SVG. Colours are the page's, by class."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 520.0
LEFT, RIGHT = 58.0, 14.0
TICKS_ON_LOG = (1, 2, 5)
TICK_PX = 62.0
"""Room of a tick's number along the horizontal axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to a coordinate; `start` may lie below `end`, as up is down in SVG."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(v, 1e-9)) for v in (value, low, high))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self, num: int) -> list[float]:
        """Return round values on the scale, about as many as asked for."""
        return self._log_ticks(num) if self.is_log else self._linear_ticks(num)

    def _linear_ticks(self, num: int) -> list[float]:
        step = nice((self.high - self.low) / max(num, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _log_ticks(self, num: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [
            digit * 10.0**decade
            for decade in decades
            for digit in TICKS_ON_LOG
            if self.low <= digit * 10.0**decade <= self.high
        ]
        if len(ticks) < 2:
            return self._linear_ticks(num)
        return ticks if len(ticks) <= num else ticks[:: -(-len(ticks) // num)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The rectangle of one plot, with its scales."""

    x: Scale
    y: Scale

    @property
    def top(self) -> float:
        return self.y.end

    @property
    def bottom(self) -> float:
        return self.y.start

    def frame(self, x_title: str, y_title: str, *, room: float = 12.0) -> Iterator[str]:
        """Yield grid, ticks and titles; without `x_title` the axis below is another panel's.

        `room` is left between the plot and its title.
        """
        for value in self.y.ticks(4):
            y = self.y(value)
            yield line(self.x.start, y, self.x.end, y, "grid")
            yield text(self.x.start - 6, y + 4, number(value), "end")
        yield line(self.x.start, self.bottom, self.x.end, self.bottom, "axis")
        yield text(4, self.top - room, y_title, "start", "title")
        for value in self.x.ticks(int((self.x.end - self.x.start) / TICK_PX)):
            x = self.x(value)
            yield line(x, self.bottom, x, self.bottom + 4, "axis")
            if x_title:
                yield text(x, self.bottom + 18, number(value), "middle")
        if x_title:
            yield text(self.x.end, self.bottom + 36, x_title, "end", "title")

    def bars(
        self, edges: Sequence[float], heights: Sequence[float], notes: Sequence[str]
    ) -> Iterator[str]:
        """Yield a bar for each interval that has any height; a note shows under the pointer."""
        for index, height in enumerate(heights):
            if height:
                left, right, top = self.x(edges[index]), self.x(edges[index + 1]), self.y(height)
                size = (
                    f'width="{max(right - left - 0.6, 0.6):.2f}" height="{self.bottom - top:.2f}"'
                )
                yield f'<rect class="bar" x="{left}" y="{top}" {size}>{_note(notes[index])}</rect>'

    def steps(
        self, edges: Sequence[float], heights: Sequence[float], notes: Sequence[str]
    ) -> Iterator[str]:
        """Yield an area under a line of steps, one for each interval."""
        points = [
            f"{self.x(edges[index + side])} {self.y(height)}"
            for index, height in enumerate(heights)
            for side in (0, 1)
        ]
        start, end = self.x(edges[0]), self.x(edges[-1])
        curve = "L".join(points)
        yield f'<path class="area" d="M{start} {self.bottom}L{curve}L{end} {self.bottom}Z"/>'
        yield f'<path class="curve" d="M{curve}"/>'
        for index, note in enumerate(notes):
            left, right = self.x(edges[index]), self.x(edges[index + 1])
            size = f'width="{right - left:.2f}" height="{self.bottom - self.top:.2f}"'
            yield f'<rect class="touch" x="{left}" y="{self.top}" {size}>{_note(note)}</rect>'


def figure(height: float, label: str, parts: Iterable[str]) -> str:
    """Return an SVG that says to those who cannot see it what it shows."""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def text(x: float, y: float, content: str, anchor: str, kind: str = "tick") -> str:
    """Return a piece of text."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(content)}</text>'


def dot(x: float, y: float, note: str, kind: str = "dot") -> str:
    """Return a point."""
    radius = 3.5 if kind == "mark" else 2.2
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}">{_note(note)}</circle>'


def nice(step: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ..."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def number(value: float) -> str:
    """Return a number in at most four digits, long ones with separators."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _note(content: str) -> str:
    return f"<title>{escape(content)}</title>"
