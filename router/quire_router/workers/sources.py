"""The sources of replicas, each of which every worker follows on its own, as one shows them.

What was counted is added up, also what workers counted that have ended. Where workers differ in
what they have heard, the one that has heard nothing for longest is shown: it is the one that new
replicas may be unknown to.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from quire_router.discovery_status import DiscoveryStatus, Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source as one worker follows it."""

    source: str
    started_at: float = 0.0
    """By the monotonic clock."""
    heard_at: float | None = None
    num_lists: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    num_endpoints: dict[str, int] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    @classmethod
    def of(cls, status: DiscoveryStatus) -> Self:
        return cls(
            source=status.source,
            started_at=status.started_at,
            heard_at=status.heard_at,
            num_lists=status.num_lists,
            failures=dict(status.failures),
            num_endpoints=dict(status.num_endpoints),
            endpoints=dict(status.endpoints),
        )


def going_on(own: Iterable[SourceFacts], ended: Iterable[SourceFacts]) -> list[SourceFacts]:
    """Return a worker's sources with what the one before it has counted."""
    before = {facts.source: facts for facts in ended}
    found = [
        facts if facts.source not in before else _counted(facts, [facts, before.pop(facts.source)])
        for facts in own
    ]
    return [*found, *before.values()]


def merged(
    live: Sequence[Sequence[SourceFacts]], ended: Sequence[Sequence[SourceFacts]]
) -> list[DiscoveryStatus]:
    """Return the sources of live workers, with the counts of those that have ended."""
    names = dict.fromkeys(facts.source for sources in live for facts in sources)
    return [
        _merged(_named(name, live), [*_named(name, live), *_named(name, ended)]) for name in names
    ]


def _named(name: str, workers: Sequence[Sequence[SourceFacts]]) -> list[SourceFacts]:
    return [facts for sources in workers for facts in sources if facts.source == name]


def _merged(live: Sequence[SourceFacts], counted: Sequence[SourceFacts]) -> DiscoveryStatus:
    latest = max(live, key=lambda facts: facts.heard_at or 0.0)
    heard = [facts.heard_at for facts in live if facts.heard_at is not None]
    total = _counted(latest, counted)
    status = DiscoveryStatus(
        source=latest.source,
        heard_at=min(heard) if len(heard) == len(live) else None,
        num_lists=total.num_lists,
        failures=total.failures,
        num_endpoints=latest.num_endpoints,
        endpoints=latest.endpoints,
    )
    status.started_at = min(facts.started_at for facts in live)
    return status


def _counted(facts: SourceFacts, all_of_it: Sequence[SourceFacts]) -> SourceFacts:
    """Return the facts with the counts of all."""
    failures: Counter[str] = Counter()
    for other in all_of_it:
        failures.update(other.failures)
    return replace(
        facts, num_lists=sum(other.num_lists for other in all_of_it), failures=dict(failures)
    )
