"""A server that answers lists and watches of EndpointSlices as a test says.

It speaks the wire format of Kubernetes and nothing of its semantics, nor TLS: those are tested
against a real API server in `tests/cluster`.
"""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certifi
from aiohttp import web

from quire_router.kubernetes_api import InCluster

Slice = dict[str, Any]


def endpoint(
    address: str, *, pod: str = "", ready: bool = True, terminating: bool = False, **conditions: Any
) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {
            "ready": ready and not terminating,
            "serving": ready,
            "terminating": terminating,
            **conditions,
        },
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "name": pod or f"pod-{address}", "uid": pod or address},
    }


def slice_of(name: str, *endpoints: dict[str, Any], kind: str = "IPv4", port: int = 50051) -> Slice:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "engines"}},
        "addressType": kind,
        "ports": [{"name": "grpc", "port": port}, {"name": "metrics", "port": 9464}],
        "endpoints": list(endpoints),
    }


@dataclass
class ScriptedApiServer:
    """What it holds, what it was asked, and what it does wrong."""

    cluster: InCluster
    slices: dict[str, Slice] = field(default_factory=dict)
    version: int = 1
    token: str = "token-1"
    list_status: int = 200
    ends_watches: bool = False
    """End every watch as soon as it began."""
    lists: list[web.Request] = field(default_factory=list)
    watches: list[asyncio.Queue[bytes | None]] = field(default_factory=list)
    watch_queries: list[dict[str, str]] = field(default_factory=list)

    def set(self, *slices: Slice) -> None:
        """Hold these slices, and tell nobody."""
        self.version += 1
        self.slices = {slice_["metadata"]["name"]: slice_ for slice_ in slices}

    def tell(self, kind: str, object_: Any) -> None:
        """Send an event on the newest watch."""
        self.watches[-1].put_nowait(json.dumps({"type": kind, "object": object_}).encode() + b"\n")

    def end_watch(self) -> None:
        """End the newest watch, as the API server does when its time is over."""
        self.watches[-1].put_nowait(None)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != f"Bearer {self.token}":
            return web.json_response({"message": "Unauthorized"}, status=401)
        if request.query.get("watch") == "true":
            return await self._watch(request)
        self.lists.append(request)
        if self.list_status != 200:
            return web.json_response({"message": "no list today"}, status=self.list_status)
        metadata = {"resourceVersion": str(self.version)}
        return web.json_response({"metadata": metadata, "items": list(self.slices.values())})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.watch_queries.append(dict(request.query))
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.watches.append(queue)
        while not self.ends_watches and (line := await queue.get()) is not None:
            await response.write(line)
        return response


@asynccontextmanager
async def scripted_api_server(folder: Path) -> AsyncIterator[ScriptedApiServer]:
    app = web.Application()
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    server = ScriptedApiServer(InCluster(base_url="", directory=folder))
    app.router.add_get("/{path:.*}", server.answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    shutil.copy(certifi.where(), folder / "ca.crt")
    (folder / "token").write_text("token-1\n")
    (folder / "namespace").write_text("default")
    server.cluster = InCluster(base_url=f"http://127.0.0.1:{port}", directory=folder)
    try:
        yield server
    finally:
        await runner.cleanup()
