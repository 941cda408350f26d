"""Operators for tests: in this process, so that they can be cut off at any write, or outside."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from quire_operator.config import RuntimeConfig
from quire_operator.plan import FIELD_MANAGER, Manifest, OperatorSettings, plan
from quire_operator.runtime.kube import KubeApi, load_configuration
from quire_operator.runtime.metrics import OperatorMetrics
from quire_operator.runtime.process import Process
from quire_operator.runtime.reconciler import Planner


@dataclass(slots=True)
class Fate:
    """When an operator dies, as by SIGKILL: at its n-th write, before or after the server's act."""

    at_write: int = 0
    """Counted from one; 0: it lives."""
    is_after: bool = False
    writes: list[str] = field(default_factory=list)
    died: asyncio.Event = field(default_factory=asyncio.Event)


class MortalApi(KubeApi):
    """An API client that never says another word once its operator died."""

    fate: Fate

    async def _send(self, method: str, path: str, query: Any, **options: Any) -> Any:
        if self.fate.died.is_set():
            await asyncio.Event().wait()
        if method == "GET" or "/leases" in path:
            return await super()._send(method, path, query, **options)
        self.fate.writes.append(f"{method} {path}")
        is_fatal = len(self.fate.writes) == self.fate.at_write
        if is_fatal and not self.fate.is_after:
            await self._die()
        response: aiohttp.ClientResponse = await super()._send(method, path, query, **options)
        if is_fatal:
            await self._die()
        return response

    async def _die(self) -> None:
        self.fate.died.set()
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def operating(
    kubeconfig: Path,
    *,
    fate: Fate | None = None,
    planner: Planner = plan,
    settings: OperatorSettings | None = None,
    **options: Any,
) -> AsyncIterator[Process]:
    """Run an operator for the length of the block; what is left of it then is dropped, not stopped.

    Like a killed process, it leaves its Lease and finishes nothing.
    """
    given: dict[str, Any] = {
        "leader_election": False,
        "metrics_address": "0",
        "health_address": "0",
        "kubeconfig": str(kubeconfig),
        "settle_s": 0.2,
        "progress_s": 2.0,
        "identity": "test",
    }
    config = RuntimeConfig(**(given | options))
    configuration = await load_configuration(str(kubeconfig), max_connections=64)
    api = MortalApi(configuration, OperatorMetrics(), field_manager=FIELD_MANAGER)
    api.fate = fate or Fate()
    process = Process(config, settings or OperatorSettings(), api, planner)
    task = asyncio.create_task(process.run(asyncio.Event()))
    try:
        yield process
        if task.done():
            task.result()
    finally:
        api.fate.died.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def api_client(kubeconfig: Path) -> AsyncIterator[KubeApi]:
    """A client of a test's own."""
    configuration = await load_configuration(str(kubeconfig), max_connections=64)
    api = KubeApi(configuration, OperatorMetrics(), field_manager="test")
    try:
        yield api
    finally:
        await api.close()


async def eventually(what: str, is_true: Callable[[], Any], *, limit_s: float = 120.0) -> Any:
    """Ask until the answer is true, and return it; the answer may be awaitable."""
    answer: Any = None
    try:
        async with asyncio.timeout(limit_s):
            while True:
                answer = is_true()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return answer
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{what}: not so after {limit_s:g} s") from None


def llm(name: str, namespace: str, **spec: Any) -> Manifest:
    """An LLMDeployment with one GPU per replica."""
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"source": "hf://Qwen/Qwen3-0.6B"}} | spec,
    }
