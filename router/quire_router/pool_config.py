"""Where replicas are found, how one is chosen, and when one is given up."""

from dataclasses import dataclass

from quire_router.errors import ConfigError
from quire_router.options import option

ROUTING_POLICIES = ("cost", "least-requests")
SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The pool side of the router's configuration; `RouterConfig` extends it."""

    replicas: tuple[str, ...] = option(
        (),
        "engines to route to: host:port, unix:/path, dns:///name:port for all its addresses, or "
        "kubernetes:///service.namespace:port for a Service's endpoints",
    )
    service_account_dir: str = option(
        SERVICE_ACCOUNT_DIR, "folder with token, ca.crt and namespace, for kubernetes:///"
    )
    dns_interval_s: float = option(3.0, "seconds between look-ups of dns:/// replicas")
    routing_policy: str = option(
        "cost",
        "cost: shortest predicted time to first token, by cached prefix and load; "
        "least-requests: fewest active requests",
        choices=ROUTING_POLICIES,
    )
    replica_wait_s: float = option(
        10.0, "seconds that a request waits for a replica while none is ready, before 503"
    )
    max_request_retries: int = option(
        3, "times that a request which produced nothing is sent again after its replica failed it"
    )
    unresponsive_after_s: float = option(
        3.0, "seconds without a load report after which a replica gets no new work"
    )
    lost_after_s: float = option(
        15.0, "seconds without a load report, or unhealthy, after which a replica is given up"
    )
    breaker_failures: int = option(
        5, "engine errors in a row after which a replica gets no work for a while"
    )
    breaker_open_s: float = option(5.0, "how long that while is, in seconds; doubles up to 60")

    def __post_init__(self) -> None:
        """Check the values; `RouterConfig` calls this for its own."""
        if self.routing_policy not in ROUTING_POLICIES:
            raise ConfigError(
                f"routing_policy must be one of {', '.join(ROUTING_POLICIES)}; "
                f"not {self.routing_policy!r}"
            )
        for name in ("replica_wait_s", "max_request_retries"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("dns_interval_s", "unresponsive_after_s", "lost_after_s", "breaker_open_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.breaker_failures < 1:
            raise ConfigError(f"breaker_failures must be at least 1, not {self.breaker_failures}")
        if self.lost_after_s < self.unresponsive_after_s:
            raise ConfigError(
                f"lost_after_s ({self.lost_after_s}) must be at least unresponsive_after_s "
                f"({self.unresponsive_after_s})"
            )
