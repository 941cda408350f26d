"""The replicas of a deployment: what each of them is, whether it is one pod or a group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from quire_operator.plan.context import Context
from quire_operator.plan.contract import Manifest
from quire_operator.plan.labels import ENGINE, TEMPLATE_HASH_ANNOTATION
from quire_operator.plan.pods import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of the model: one pod, or the pods of a group, leader first."""

    index: int
    pods: tuple[Pod, ...]
    num_pods_wanted: int
    update_revision: str
    """Revision that its pods should have; "" while nobody knows yet."""

    @property
    def name(self) -> str:
        """Name of the pod that serves."""
        return self.pods[0].name if self.pods else ""

    @property
    def exists(self) -> bool:
        return any(not pod.is_terminating for pod in self.pods)

    @property
    def is_serving(self) -> bool:
        """Whether requests can go there: every pod of it is ready."""
        return len(self.pods) == self.num_pods_wanted and all(pod.is_serving for pod in self.pods)

    @property
    def is_updated(self) -> bool:
        """Whether every pod of it is of the newest revision."""
        return len(self.pods) == self.num_pods_wanted and not self.stale_pods

    @property
    def stale_pods(self) -> tuple[Pod, ...]:
        """Pods of an older revision. None while the newest is not known."""
        wanted = self.update_revision
        return tuple(pod for pod in self.pods if wanted and pod.revision != wanted)

    @property
    def trouble(self) -> str:
        """Why it does not serve, for people, or ""."""
        for pod in self.pods:
            if text := pod.failing or pod.unschedulable:
                return text
        return ""


@dataclass(frozen=True)
class Replicas:
    """All replicas that should be or still are, by index."""

    all: tuple[Replica, ...]
    num_wanted: int
    is_observed: bool
    """Whether the StatefulSets' controller has seen the newest template. Until then nobody knows
    which pods are old."""
    was_complete: bool
    """Whether the cluster has seen all replicas ready with the newest revision. One that is lost
    afterwards does not undo the rollout."""

    @cached_property
    def wanted(self) -> tuple[Replica, ...]:
        """Those that should be, missing ones included."""
        return tuple(replica for replica in self.all if replica.index < self.num_wanted)

    @property
    def num_existing(self) -> int:
        return sum(replica.exists for replica in self.all)

    @property
    def num_serving(self) -> int:
        return sum(replica.is_serving for replica in self.wanted)

    @property
    def num_updated(self) -> int:
        return sum(replica.is_updated for replica in self.wanted) if self.is_observed else 0

    def num_available(self, partition: int) -> int:
        """Count replicas that serve what they should: the newest revision, or by partition any."""
        return sum(
            replica.is_serving
            and (replica.index < partition or (self.is_observed and replica.is_updated))
            for replica in self.wanted
        )

    def has_stale(self, partition: int) -> bool:
        """Tell whether pods of an old revision wait to be replaced, or might."""
        return not self.is_observed or any(
            replica.stale_pods for replica in self.wanted if replica.index >= partition
        )

    @property
    def progressed_at(self) -> datetime | None:
        """When a pod was made or became ready last."""
        times = [
            moment
            for replica in self.all
            for pod in replica.pods
            for moment in (pod.created_at, pod.ready_at if pod.is_ready else None)
            if moment
        ]
        return max(times, default=None)


def read_pods(manifests: Iterable[Manifest], component: str) -> tuple[Pod, ...]:
    """Return the pods of a component."""
    pods = (Pod.of(manifest) for manifest in manifests)
    return tuple(pod for pod in pods if pod.component == component)


def read_replicas(ctx: Context, hashes: Mapping[str, str]) -> Replicas:
    """Return what there is of each replica.

    `hashes` are the template hashes that the StatefulSets should have, by their names: one that
    carries another hash is yet to be changed, so that its newest revision is not ours.
    """
    pods = [pod for pod in read_pods(ctx.observed.pods, ENGINE) if pod.ordinal >= 0]
    if ctx.is_grouped:
        return _groups(ctx, pods, hashes)
    name = ctx.engine_name
    live = ctx.live("apps/v1", "StatefulSet", name)
    revision = update_revision(live, hashes.get(name))
    own = {pod.ordinal: pod for pod in pods if pod.owner == name}
    count = max([ctx.num_replicas, *(ordinal + 1 for ordinal in own)])
    replicas = tuple(
        Replica(
            index=index,
            pods=(own[index],) if index in own else (),
            num_pods_wanted=1,
            update_revision=revision,
        )
        for index in range(count)
    )
    current = ((live or {}).get("status") or {}).get("currentRevision")
    # A partition that holds pods back keeps the cluster's record from ever being written.
    was_complete = bool(revision) and (current == revision or ctx.spec.rollout.partition > 0)
    return Replicas(replicas, ctx.num_replicas, bool(revision) or not own, was_complete)


def update_revision(live: Manifest | None, template_hash: str | None) -> str:
    """Return the revision that a StatefulSet gives to new pods, if it is that of our template."""
    if live is None:
        return ""
    metadata, status = live.get("metadata", {}), live.get("status") or {}
    applied = (metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION)
    is_seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    if applied != template_hash or not is_seen:
        return ""
    return str(status.get("updateRevision", ""))


def _groups(ctx: Context, pods: Sequence[Pod], hashes: Mapping[str, str]) -> Replicas:
    size = ctx.spec.parallelism.nodes_per_replica
    count = max([ctx.num_replicas, *(pod.replica + 1 for pod in pods)])
    replicas, is_observed = [], True
    for index in range(count):
        name = ctx.group_name(index)
        members = sorted((pod for pod in pods if pod.owner == name), key=lambda pod: pod.ordinal)
        live = ctx.live("apps/v1", "StatefulSet", name)
        revision = update_revision(live, hashes.get(name))
        is_observed = is_observed and (bool(revision) or not members or index >= ctx.num_replicas)
        replicas.append(
            Replica(
                index=index,
                pods=tuple(members),
                num_pods_wanted=size,
                update_revision=revision,
            )
        )
    return Replicas(tuple(replicas), ctx.num_replicas, is_observed, is_observed)
