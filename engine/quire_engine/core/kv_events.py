"""Collects what a step changes in the set of cached blocks, net of what it undoes.

A subscriber applies KvEvents in the order cleared, stored, removed. Within one step a block may be
removed and stored again, or the other way round: neither changed the set, so neither is said.
"""

from quire_engine.core.messages import KvEvents


class KvEventLog:
    """Changes since the last `take`, by block hash."""

    def __init__(self) -> None:
        self._cleared = False
        self._stored: dict[int, int] = {}  # parent hash by hash, in the order of storing
        self._removed: dict[int, None] = {}  # a set that keeps its order

    @property
    def is_empty(self) -> bool:
        return not (self._stored or self._removed or self._cleared)

    def store(self, block_hash: int, parent_hash: int) -> None:
        """Record that a block is cached which was not."""
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = parent_hash

    def remove(self, block_hash: int) -> None:
        """Record that a block is cached no more."""
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None

    def clear(self) -> None:
        """Record that nothing is cached any more."""
        self._cleared = True
        self._stored.clear()
        self._removed.clear()

    def take(self) -> KvEvents | None:
        """Return the net changes and start anew; None if there are none."""
        if self.is_empty:
            return None
        events = KvEvents(
            stored=_as_runs(self._stored), removed=list(self._removed), cleared=self._cleared
        )
        self._cleared, self._stored, self._removed = False, {}, {}
        return events


def _as_runs(parents: dict[int, int]) -> list[tuple[int, list[int]]]:
    """Join blocks that follow one another into (parent of the first, all hashes)."""
    runs: list[tuple[int, list[int]]] = []
    for block_hash, parent in parents.items():
        if runs and runs[-1][1][-1] == parent:
            runs[-1][1].append(block_hash)
        else:
            runs.append((parent, [block_hash]))
    return runs
