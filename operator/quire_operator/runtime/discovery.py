"""What the API server serves: optional kinds, its version, and whether our own CRD is there."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from quire_operator.errors import NotFoundError
from quire_operator.plan import Manifest
from quire_operator.runtime.kube import KubeApi
from quire_operator.runtime.resources import OPTIONAL_CHILDREN, Resource, by_api

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerApis:
    """The kinds of API groups that the server has, and its version."""

    resources: dict[tuple[str, str], Resource] = field(default_factory=dict)
    version: tuple[int, int] = (1, 30)

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """(apiVersion, kind) of every kind."""
        return frozenset(self.resources)

    def optional(self) -> tuple[Resource, ...]:
        """The optional kinds that are there."""
        return tuple(self.resources[api] for api in OPTIONAL_CHILDREN if api in self.resources)


async def discover(api: KubeApi) -> ServerApis:
    """Ask the server what it has, in two requests.

    Raises:
        KubeError: it cannot be asked.
    """
    answer = await api.raw("/apis", accept=f"{_AGGREGATED},application/json")
    if answer.get("kind") == "APIGroupDiscoveryList":
        resources = by_api(aggregated_resources(answer))
    else:
        # A server that does not aggregate: ask for the groups that matter.
        resources = {}
        for api_version in sorted({version for version, _ in OPTIONAL_CHILDREN} | {_OWN}):
            resources |= await _group_resources(api, api_version)
    return ServerApis(resources=resources, version=parse_version(await api.raw("/version")))


def aggregated_resources(answer: Manifest) -> Iterator[Resource]:
    """Read an APIGroupDiscoveryList."""
    for group in answer.get("items", ()):
        for version in group.get("versions", ()):
            api_version = f"{group['metadata']['name']}/{version['version']}"
            for item in version.get("resources", ()):
                yield Resource(
                    api_version,
                    # An aggregated server that is down is listed without kinds.
                    (item.get("responseKind") or {}).get("kind", ""),
                    item["resource"],
                    item.get("scope") != "Cluster",
                )


def parse_version(answer: Manifest) -> tuple[int, int]:
    """Read /version; managed servers write their minor as `31+`."""
    minor = "".join(filter(str.isdigit, answer.get("minor", "")))
    return int(answer.get("major", 1)), int(minor or 30)


_OWN = "quire.dev/v1alpha1"


async def _group_resources(api: KubeApi, api_version: str) -> dict[tuple[str, str], Resource]:
    try:
        answer = await api.raw(f"/apis/{api_version}")
    except NotFoundError:
        return {}
    return by_api(
        Resource(api_version, item["kind"], item["name"], item["namespaced"])
        for item in answer.get("resources", ())
        if "/" not in item["name"]
    )
