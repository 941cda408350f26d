"""Values of `prometheus_client` metrics in the memory that workers share.

A worker adds to its own values and shows the sum of all workers'. A value lies at the same place of
the list of values as its name does in the list of names; both only grow, names being complete up to
an end that is stored last. A worker that is started anew finds its values and goes on with them,
except for gauges, which begin at 0.

Written by the event loop's thread alone: unlike the library's own values, these take no lock.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from quire_router.replica_account import Cells, cells
from quire_router.workers.memory import (
    MAX_VALUES,
    VALUE_NAMES_BYTES,
    Slot,
    Status,
    WorkerMemory,
)

logger = logging.getLogger(__name__)

SUM = "livesum"
"""Mode of gauges that are added up; of others the largest is shown."""


class ValueNames:
    """The names of one worker's values, for itself and for others."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._end = 0
        self.places: dict[str, int] = {}

    def refresh(self) -> bool:
        """Read what is new; return whether there was anything."""
        end = self._slot.words[Status.VALUE_NAMES_END]
        if end == self._end:
            return False
        lines = bytes(self._slot.value_names[self._end : end]).decode().split("\n")
        for name in lines[:-1]:
            self.places[name] = len(self.places)
        self._end = end
        return True

    def add(self, name: str) -> int | None:
        """Return the place of a value; None when there is no room. For the slot's own worker."""
        place = self.places.get(name)
        if place is not None:
            return place
        data = name.encode() + b"\n"
        if len(self.places) >= MAX_VALUES or self._end + len(data) > VALUE_NAMES_BYTES:
            return None
        place = self.places[name] = len(self.places)
        self._slot.value_names[self._end : self._end + len(data)] = data
        self._end += len(data)
        self._slot.words[Status.VALUE_NAMES_END] = self._end
        return place


class SharedValues:
    """The values of all workers, one of which is this process."""

    def __init__(self, memory: WorkerMemory, number: int) -> None:
        self._slots = memory.slots
        self._own = memory.slots[number]
        self._names = [ValueNames(slot) for slot in memory.slots]
        self._own_names = self._names[number]
        self.version = 0
        """Grows whenever a worker has a value that it had not."""
        self._adopted = -1
        self.refresh()

    def refresh(self) -> None:
        """Look for values that other workers have made."""
        for names in self._names:
            self.version += names.refresh()

    def clear_gauges(self) -> None:
        """Set this worker's gauges to 0: what they told of has ended with its predecessor."""
        for name, place in self._own_names.places.items():
            if json.loads(name)[0] == "gauge":
                self._own.values[place] = 0.0

    def own(self, name: str) -> tuple[Cells, int]:
        """Return where this worker keeps a value."""
        place = self._own_names.add(name)
        if place is None:
            logger.warning("no room to share a metric with other workers name=%s", name)
            return cells(1), 0
        self.version += 1
        return self._own.values, place

    def all(self, name: str) -> list[tuple[Cells, int]]:
        """Return where workers keep a value."""
        found = ((slot, names.places.get(name)) for slot, names in self._pairs())
        return [(slot.values, place) for slot, place in found if place is not None]

    def adopt(self, registry: CollectorRegistry) -> None:
        """Have the registry show labels that so far only other workers have used."""
        self.refresh()
        if self.version == self._adopted:
            return
        for names in self._names:
            for name in list(names.places):
                _, metric, _, labels, values, _ = json.loads(name)
                # The library has no public way from a name to the metric.
                parent = registry._names_to_collectors.get(metric)
                if labels and "le" not in labels and parent is not None:
                    parent.labels(*values)  # type: ignore[attr-defined]
        self._adopted = self.version

    def value_class(self) -> type:
        """Return what `prometheus_client.values.ValueClass` is to be in this process."""
        return type("BoundValue", (SharedValue,), {"shared": self})

    def _pairs(self) -> Sequence[tuple[Slot, ValueNames]]:
        return list(zip(self._slots, self._names, strict=True))


class Adopter(Collector):
    """Has a registry show all workers' labels; to be registered before what it is about."""

    def __init__(self, values: SharedValues, registry: CollectorRegistry) -> None:
        self._values = values
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        """Return nothing, as `collect` does."""
        return ()

    def collect(self) -> Iterable[Metric]:
        self._values.adopt(self._registry)
        return ()


class SharedValue:
    """One value; `prometheus_client` makes these."""

    shared: SharedValues

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._name = json.dumps(
            [typ, metric_name, name, list(labelnames), list(labelvalues), multiprocess_mode]
        )
        self._is_sum = typ != "gauge" or multiprocess_mode == SUM
        self._cells, self._place = self.shared.own(self._name)
        self._version = -1
        self._all: list[tuple[Cells, int]] = []

    def inc(self, amount: float) -> None:
        self._cells[self._place] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        self._cells[self._place] = value

    def get(self) -> float:
        """Return the value of all workers."""
        if self._version != self.shared.version:
            self._version = self.shared.version
            self._all = self.shared.all(self._name)
        numbers = [values[place] for values, place in self._all]
        return sum(numbers) if self._is_sum else max(numbers, default=0.0)

    def set_exemplar(self, exemplar: object) -> None:
        """Exemplars are not shown."""

    def get_exemplar(self) -> None:
        return None
