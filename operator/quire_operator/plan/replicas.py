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
    template_hash: str
    """Hash of the template that its pods should be made from."""

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
    def is_cut_off(self) -> bool:
        """Whether a node of it is out of reach: it may serve, and deleting it would help nobody."""
        return any(pod.is_cut_off for pod in self.pods)

    @property
    def is_updated(self) -> bool:
        """Whether every pod of it is of the newest revision."""
        return len(self.pods) == self.num_pods_wanted and not self.stale_pods

    @property
    def stale_pods(self) -> tuple[Pod, ...]:
        """Pods that were made from another template."""
        return tuple(pod for pod in self.pods if pod.template_hash != self.template_hash)

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
    """Whether the StatefulSets' controller has seen the newest template. Until then a pod that is
    deleted comes back as it was."""
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
        return sum(replica.is_updated for replica in self.wanted)

    def num_available(self, partition: int) -> int:
        """Count replicas that serve what they should: the newest revision, or by partition any."""
        return sum(
            replica.is_serving and (replica.index < partition or replica.is_updated)
            for replica in self.wanted
        )

    def has_stale(self, partition: int) -> bool:
        """Tell whether pods of an old revision wait to be replaced."""
        return any(replica.stale_pods for replica in self.wanted if replica.index >= partition)

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

    `hashes` are the template hashes that the StatefulSets should have, by their names.
    """
    pods = [pod for pod in read_pods(ctx.observed.pods, ENGINE) if pod.ordinal >= 0]
    if ctx.is_grouped:
        return _groups(ctx, pods, hashes)
    name = ctx.engine_name
    live = ctx.live("apps/v1", "StatefulSet", name)
    own = {pod.ordinal: pod for pod in pods if pod.owner == name}
    count = max([ctx.num_replicas, *(ordinal + 1 for ordinal in own)])
    replicas = tuple(
        Replica(
            index=index,
            pods=(own[index],) if index in own else (),
            num_pods_wanted=1,
            template_hash=hashes[name],
        )
        for index in range(count)
    )
    status = (live or {}).get("status") or {}
    is_recorded = "updateRevision" in status and (
        status.get("currentRevision") == status["updateRevision"]
    )
    # A partition that holds pods back keeps the cluster's record from ever being written.
    was_complete = is_recorded or ctx.spec.rollout.partition > 0
    return Replicas(replicas, ctx.num_replicas, is_observed(live, hashes[name]), was_complete)


def is_observed(live: Manifest | None, template_hash: str | None) -> bool:
    """Tell whether a StatefulSet has our template and its controller has seen it."""
    if live is None:
        return False
    metadata, status = live.get("metadata", {}), live.get("status") or {}
    applied = (metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION)
    is_seen: bool = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    return applied == template_hash and is_seen


def _groups(ctx: Context, pods: Sequence[Pod], hashes: Mapping[str, str]) -> Replicas:
    size = ctx.spec.parallelism.nodes_per_replica
    count = max([ctx.num_replicas, *(pod.replica + 1 for pod in pods)])
    replicas, are_observed = [], True
    for index in range(count):
        name = ctx.group_name(index)
        members = sorted((pod for pod in pods if pod.owner == name), key=lambda pod: pod.ordinal)
        live = ctx.live("apps/v1", "StatefulSet", name)
        if index < ctx.num_replicas and members:
            are_observed = are_observed and is_observed(live, hashes[name])
        replicas.append(
            Replica(
                index=index,
                pods=tuple(members),
                num_pods_wanted=size,
                # A group that is not wanted any more has no template of its own.
                template_hash=hashes.get(name, ""),
            )
        )
    return Replicas(tuple(replicas), ctx.num_replicas, are_observed, was_complete=True)
