"""Writes metrics in the text format of Prometheus, in half the time of the client library.

The text is the same. A router shows dozens of series per replica, from the event loop that also
streams tokens: with a hundred replicas the library's writer would hold it up for a token's time.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

APART = ("_created", "_gsum", "_gcount")
"""Samples that only OpenMetrics knows; here each kind is a gauge of its own, after the others."""
TYPES = {"info": "gauge", "stateset": "gauge", "gaugehistogram": "histogram", "unknown": "untyped"}
NAME_SUFFIXES = {"counter": "_total", "info": "_info"}


def exposition(registry: CollectorRegistry) -> bytes:
    """Return everything in a registry, as `prometheus_client.generate_latest` does."""
    lines: list[str] = []
    for metric in registry.collect():
        lines += _family(metric)
    return "".join(lines).encode()


def _family(metric: Metric) -> Iterator[str]:
    apart: dict[str, list[str]] = {}
    name = metric.name + NAME_SUFFIXES.get(metric.type, "")
    yield _header(name, TYPES.get(metric.type, metric.type), metric.documentation)
    special = {metric.name + suffix: suffix for suffix in APART}
    for sample in metric.samples:
        suffix = special.get(sample.name)
        if suffix is None:
            yield _line(sample)
        else:
            apart.setdefault(suffix, []).append(_line(sample))
    for suffix, lines in sorted(apart.items()):
        yield _header(metric.name + suffix, "gauge", metric.documentation)
        yield from lines


def _header(name: str, kind: str, help_: str) -> str:
    text = help_.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _line(sample: Sample) -> str:
    value = float(sample.value)
    number = repr(value) if 0.0 <= value < 1e6 else _go(value)
    labels = sample.labels
    if not labels:
        return f"{sample.name} {number}\n"
    pairs = labels.items() if len(labels) == 1 else sorted(labels.items())
    text = ",".join([f'{label}="{_escaped(value)}"' for label, value in pairs])
    return f"{sample.name}{{{text}}} {number}\n"


def _go(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]  # theirs


def _escaped(value: str) -> str:
    if "\\" in value or "\n" in value or '"' in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value
