"""Series whose lines begin alike at every scrape, so that only their values are written anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

MAX_PLAIN = 1e6
"""Go writes numbers from here on with an exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series of a family."""

    name: str
    labels: Mapping[str, str]
    start: str
    """Of its line, up to the value."""

    @classmethod
    def of(cls, name: str, labels: Mapping[str, str]) -> Self:
        return cls(name=name, labels=labels, start=start_of_line(name, labels))


class SeriesMetric(Metric):
    """A family as pairs of series and values; its samples are made for who asks for them."""

    def __init__(
        self, name: str, help_: str, kind: str, series: Sequence[Series], values: Sequence[float]
    ) -> None:
        """Take as many values as series, in their order."""
        self._series = series
        self._values = values
        super().__init__(name, help_, kind)

    @property
    def samples(self) -> list[Sample]:
        pairs = zip(self._series, self._values, strict=True)
        return [Sample(series.name, dict(series.labels), value) for series, value in pairs]

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """Ignore the empty list that the base class begins with."""

    def lines(self) -> list[str]:
        """Return what an exposition says of each."""
        pairs = zip(self._series, self._values, strict=True)
        # In one expression, as a large router has thousands of them: `number` is for the others.
        return [
            f"{series.start}{float(value)!r}\n"
            if 0.0 <= value < MAX_PLAIN
            else f"{series.start}{number(value)}\n"
            for series, value in pairs
        ]


def start_of_line(name: str, labels: Mapping[str, str]) -> str:
    """Return what stands before the value."""
    if not labels:
        return f"{name} "
    pairs = labels.items() if len(labels) == 1 else sorted(labels.items())
    text = ",".join([f'{label}="{_escaped(value)}"' for label, value in pairs])
    return f"{name}{{{text}}} "


def number(value: float) -> str:
    """Return a value as Go writes it."""
    value = float(value)
    return repr(value) if 0.0 <= value < MAX_PLAIN else _go(value)


def _go(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]  # theirs


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
