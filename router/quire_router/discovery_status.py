"""What is known of a source of replicas, apart from the replicas: is it still being heard?"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a source tells of one address besides the address."""

    pod: str = ""
    node: str = ""


@dataclass(slots=True, kw_only=True)
class DiscoveryStatus:
    """One source, as the metrics show it. Its discovery writes it."""

    source: str
    """As the configuration names it."""
    can_go_stale: bool = True
    clock: Callable[[], float] = time.monotonic
    started_at: float = field(init=False)
    heard_at: float | None = None
    """When it last answered; None: never yet."""
    num_lists: int = 0
    """Times that the complete set was asked for and told."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed attempts by reason."""
    num_endpoints: dict[str, int] = field(default_factory=dict)
    """Addresses by state, for sources that tell states."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """By target."""

    def __post_init__(self) -> None:
        self.started_at = self.clock()

    def heard(self) -> None:
        """Note that the source has answered."""
        self.heard_at = self.clock()

    def failed(self, reason: str) -> None:
        """Count a failed attempt."""
        self.failures[reason] = self.failures.get(reason, 0) + 1

    @property
    def age_s(self) -> float:
        """Seconds since it was last heard, or since the start if it never was."""
        if not self.can_go_stale:
            return 0.0
        return self.clock() - (self.started_at if self.heard_at is None else self.heard_at)
