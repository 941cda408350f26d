from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from http_support import ScriptedDispatcher, Served, serve

Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve_with() -> AsyncIterator[Serve]:
    """Start routers with options of the test's own."""
    async with AsyncExitStack() as stack:

        async def start(script: ScriptedDispatcher | None = None, **options: Any) -> Served:
            router = serve(script or ScriptedDispatcher(), **options)
            return await stack.enter_async_context(router)

        yield start


@pytest.fixture
async def served(serve_with: Serve) -> Served:
    return await serve_with()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Served]:
    """One router for all tests of a module, which must not depend on each other."""
    async with serve(ScriptedDispatcher()) as running:
        yield running
