"""Where replicas are found and how one is chosen."""

from dataclasses import dataclass

from quire_router.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The pool side of the router's configuration; `RouterConfig` extends it."""

    replicas: tuple[str, ...] = option((), "gRPC targets of engines: host:port or unix:/path")

    def __post_init__(self) -> None:
        """Check the values; `RouterConfig` calls this for its own."""
