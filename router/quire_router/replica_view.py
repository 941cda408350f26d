"""A replica as metrics and reports show it: a snapshot, of one router process or of several."""

from dataclasses import dataclass
from typing import Self

from quire_engine.rpc import engine_pb2 as pb
from quire_router.prefix_index import IndexMode
from quire_router.replica import Replica, ReplicaState
from quire_router.replica_account import ReplicaCounts, Trail


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """What one process knows of a replica; nothing in it adds up with what others know."""

    address: str
    state: ReplicaState
    is_retired: bool
    is_breaker_open: bool
    index_mode: IndexMode
    num_index_blocks: int
    index_updated_at: float
    """By the monotonic clock; 0: never."""
    heard_at: float
    """Likewise, of its last load report."""
    model: str
    device: str
    report: pb.Load

    @classmethod
    def of(cls, replica: Replica) -> Self:
        names = replica.info.served_model_names
        return cls(
            address=replica.address,
            state=replica.state,
            is_retired=replica.is_retired,
            is_breaker_open=replica.breaker.is_open,
            index_mode=replica.index.mode,
            num_index_blocks=replica.index.num_known,
            index_updated_at=replica.index.updated_at,
            heard_at=replica.heard_at,
            model=names[0] if names else "",
            device=replica.info.device,
            report=replica.load.report,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """A replica, with what this router has there and has counted there."""

    facts: ReplicaFacts
    counts: ReplicaCounts
    trail: Trail
    num_in_flight: int
    queued_tokens: int

    @classmethod
    def of(cls, replica: Replica) -> Self:
        return cls(
            facts=ReplicaFacts.of(replica),
            counts=replica.counts,
            trail=replica.account.trail,
            num_in_flight=replica.load.num_own,
            queued_tokens=replica.load.queued_tokens,
        )
