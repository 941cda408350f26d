"""Reads objects straight from the API server.

Tests ask many times a second whether something is so, and starting kubectl for each question would
take a core from what they wait for.
"""

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from local_cluster.errors import CommandError

Manifest = dict[str, Any]

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Reader:
    """Knows kinds by every name that kubectl knows them by."""

    def __init__(self, server: str, authority: Path, token: str) -> None:
        self._server = server
        self._token = token
        self._context = ssl.create_default_context(cafile=str(authority))
        self._paths: dict[str, tuple[str, str]] = {}
        """Name of a kind -> (path of its group and version with its plural, scope)."""

    def get(self, kind: str, name: str, namespace: str) -> Manifest:
        """Return one object, or the list of all of a kind when `name` is empty.

        Raises:
            CommandError: there is no such object or kind, or the server does not answer.
        """
        path = self._path(kind, namespace)
        return self._fetch(f"{path}/{name}" if name else path)

    def items(self, kind: str, namespace: str, selector: str) -> list[Manifest]:
        """Return every object of a kind that the label selector matches."""
        query = urllib.parse.urlencode({"labelSelector": selector})
        found = self._fetch(f"{self._path(kind, namespace)}?{query}")
        # In a list the server leaves out what is the same for all.
        return [
            {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List"), **item}
            for item in found["items"]
        ]

    def _path(self, kind: str, namespace: str) -> str:
        wanted = kind.lower()
        if wanted not in self._paths:
            self._discover()
        if wanted not in self._paths:
            raise CommandError(["get", kind], 1, f'the server has no resource type "{kind}"')
        path, scope = self._paths[wanted]
        if scope == "Cluster":
            return path
        prefix, _, plural = path.rpartition("/")
        return f"{prefix}/namespaces/{namespace}/{plural}"

    def _discover(self) -> None:
        for root in ("/api", "/apis"):
            for group in self._fetch(root, accept=AGGREGATED)["items"]:
                name = group["metadata"].get("name", "")
                # The first version is the preferred one.
                version = group["versions"][0]
                base = "/".join(part for part in (root, name, version["version"]) if part)
                for resource in version["resources"]:
                    self._add(base, name, resource)

    def _add(self, base: str, group: str, resource: Manifest) -> None:
        plural = resource["resource"]
        names = [plural, resource["responseKind"]["kind"].lower(), *resource.get("shortNames", [])]
        names.append(resource.get("singularResource") or plural)
        for name in names:
            # Core kinds come first and keep their names: events, for one, are in two groups.
            self._paths.setdefault(name, (f"{base}/{plural}", resource["scope"]))
            self._paths[f"{name}.{group}"] = (f"{base}/{plural}", resource["scope"])

    def _fetch(self, path: str, accept: str = "application/json") -> Manifest:
        request = urllib.request.Request(self._server + path)
        request.add_header("Authorization", f"Bearer {self._token}")
        request.add_header("Accept", accept)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as response:
                found: Manifest = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                message = error.read().decode(errors="replace")
            raise CommandError(["GET", path], error.code, message) from error
        except OSError as error:
            raise CommandError(["GET", path], 1, str(error)) from error
        return found
