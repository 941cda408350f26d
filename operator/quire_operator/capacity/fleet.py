"""The nodes of a cluster: each is read once, and each demand is judged once."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from quire_operator.capacity.demand import Demand
from quire_operator.capacity.fitting import Fit, examine
from quire_operator.capacity.footprint import Footprint
from quire_operator.capacity.memory import Workload
from quire_operator.capacity.nodes import NodeFacts

MAX_REMEMBERED = 4096
"""Answers to keep. A deployment asks the same at every look, and many ask what others do."""


class Fleet:
    """Nodes as the API server returns them. A change of any of them makes a new fleet."""

    def __init__(self, manifests: Iterable[Mapping[str, Any]] = ()) -> None:
        self._manifests = tuple(manifests)
        self.facts = lru_cache(maxsize=None)(self._facts)
        self.examine = lru_cache(maxsize=MAX_REMEMBERED)(self._examine)
        self._labels: dict[str, Mapping[str, str]] = {}
        for node in self._manifests:
            metadata = node.get("metadata") or {}
            self._labels[metadata.get("name", "")] = metadata.get("labels") or {}

    def __len__(self) -> int:
        return len(self._manifests)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._manifests)

    def label(self, node: str, key: str) -> str:
        """Return a label of a node; "" if it has none, or is not here."""
        return self._labels.get(node, {}).get(key, "")

    def _facts(self, resource: str) -> tuple[NodeFacts, ...]:
        return tuple(NodeFacts.from_manifest(node, resource=resource) for node in self)

    def _examine(self, demand: Demand, footprint: Footprint | None, workload: Workload) -> Fit:
        return examine(demand, self.facts(demand.resource), footprint, workload)
