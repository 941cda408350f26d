"""The EndpointSlices of one Service: which of its endpoints get new work.

Pure: fed with what the API server says, read as a set of targets. An endpoint that is terminating
gets no new work from that moment on, whatever else is said of it; what runs there may finish, for
the pool keeps a replica that is no longer wanted until it is idle.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from quire_router.discovery_status import Endpoint
from quire_router.errors import ConfigError

SERVICE_LABEL = "kubernetes.io/service-name"
ADDRESS_TYPES = ("IPv4", "IPv6")
"""In order of preference, where a pod has addresses of both kinds."""


class EndpointState(Enum):
    """What an endpoint may be given."""

    READY = "ready"
    NOT_READY = "not_ready"
    TERMINATING = "terminating"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceName:
    """Which endpoints, and which of their ports."""

    name: str
    namespace: str
    """Empty: that of the router's own pod."""
    port: str
    """A number, or the name that the Service gives it."""

    @classmethod
    def parse(cls, text: str) -> "ServiceName":
        """Read SERVICE.NAMESPACE:PORT or SERVICE:PORT.

        Raises:
            ConfigError: it is neither.
        """
        address, _, port = text.rpartition(":")
        name, dot, namespace = address.partition(".")
        is_port = 0 < int(port) < 65536 if port.isdecimal() else _is_label(port)
        if not _is_label(name) or (dot and not _is_label(namespace)) or not is_port:
            raise ConfigError(
                "a Service must be kubernetes:///SERVICE.NAMESPACE:PORT, PORT a number or a name, "
                f"not kubernetes:///{text}"
            )
        return cls(name=name, namespace=namespace, port=port)


def _is_label(text: str) -> bool:
    plain = text.replace("-", "")
    is_plain = plain.isalnum() and plain.isascii() and text == text.lower()
    return is_plain and len(text) <= 63 and text[0] != "-" != text[-1]


@dataclass(frozen=True, slots=True)
class _Found:
    state: EndpointState
    rank: int
    """Position of its kind of address in the order of preference."""
    target: str
    endpoint: Endpoint


class EndpointSlices:
    """The slices of one Service, kept by name and uid."""

    def __init__(self, port: str) -> None:
        self._port = port
        self._slices: dict[str, Mapping[str, Any]] = {}

    def replace(self, slices: Iterable[Mapping[str, Any]]) -> None:
        """Take a complete list: what is not in it is gone."""
        self._slices = {slice_["metadata"]["name"]: slice_ for slice_ in slices}

    def apply(self, event: str, slice_: Mapping[str, Any]) -> None:
        """Take one event of a watch: ADDED, MODIFIED or DELETED."""
        name = slice_["metadata"]["name"]
        if event == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = slice_

    def targets(self) -> dict[str, Endpoint]:
        """Return the targets that get new work, one for each pod."""
        return {
            found.target: found.endpoint
            for found in self._pods().values()
            if found.state is EndpointState.READY
        }

    def num_by_state(self) -> dict[str, int]:
        """Return how many pods are in each state."""
        states = [found.state for found in self._pods().values()]
        return {state.value: states.count(state) for state in EndpointState}

    def _pods(self) -> dict[str, _Found]:
        """Return what is said of each pod; a pod may be in several slices for a while."""
        pods: dict[str, _Found] = {}
        for key, found in self._found():
            known = pods.get(key)
            pods[key] = found if known is None else _of_two(known, found)
        return pods

    def _found(self) -> Iterator[tuple[str, _Found]]:
        for slice_ in self._slices.values():
            kind, port = slice_.get("addressType"), self._port_of(slice_)
            if kind not in ADDRESS_TYPES or port is None:
                continue
            for endpoint in slice_.get("endpoints") or ():
                for address in endpoint["addresses"][:1]:  # the others mean the same pod
                    found = _read(endpoint, kind, address, port)
                    yield _pod_of(endpoint) or found.target, found

    def _port_of(self, slice_: Mapping[str, Any]) -> int | None:
        if self._port.isdecimal():
            return int(self._port)
        ports = slice_.get("ports") or ()
        return next((int(p["port"]) for p in ports if p.get("name") == self._port), None)


def _of_two(known: _Found, other: _Found) -> _Found:
    if EndpointState.TERMINATING in (known.state, other.state):
        return known if known.state is EndpointState.TERMINATING else other
    return min(known, other, key=lambda found: (found.state is not EndpointState.READY, found.rank))


def _read(endpoint: Mapping[str, Any], kind: str, address: str, port: int) -> _Found:
    host = f"[{address}]" if ":" in address else address
    reference = endpoint.get("targetRef") or {}
    return _Found(
        state=_state(endpoint.get("conditions") or {}),
        rank=ADDRESS_TYPES.index(kind),
        target=f"{host}:{port}",
        endpoint=Endpoint(pod=reference.get("name", ""), node=endpoint.get("nodeName") or ""),
    )


def _state(conditions: Mapping[str, Any]) -> EndpointState:
    """Read the conditions; null means true for ready, ready for serving, false for terminating.

    `serving` decides, not `ready`: a Service with publishNotReadyAddresses calls all its endpoints
    ready.
    """
    if conditions.get("terminating"):
        return EndpointState.TERMINATING
    ready = conditions.get("ready")
    serving = conditions.get("serving")
    is_ready = True if ready is None else bool(ready)
    is_serving = is_ready if serving is None else bool(serving)
    return EndpointState.READY if is_serving else EndpointState.NOT_READY


def _pod_of(endpoint: Mapping[str, Any]) -> str:
    reference = endpoint.get("targetRef") or {}
    return str(reference.get("uid") or reference.get("name") or "")
