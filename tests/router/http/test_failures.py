"""What goes wrong behind the router, as clients see it."""

import logging
from typing import Any

import openai
import pytest

from http_support import ScriptedDispatcher, Served, model_info
from quire_router.errors import (
    ApiError,
    BadRequestError,
    NoReplicaError,
    OverloadedError,
    RateLimitError,
    ReplicaLostError,
    UpstreamError,
)

CHAT = "/v1/chat/completions"
USER: Any = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("error", "status", "code", "retries"),
    [
        (NoReplicaError(), 503, "no_replica_available", True),
        (OverloadedError("all queues are full"), 503, "server_overloaded", True),
        (RateLimitError("too many"), 429, "rate_limit_exceeded", True),
        (ReplicaLostError("gone"), 503, "replica_lost", True),
        (UpstreamError("the engine failed"), 502, "engine_error", False),
        (BadRequestError("no", param="n"), 400, None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ApiError) else None,
)
@pytest.mark.parametrize("stream", [True, False])
async def test_errors_of_the_pool_keep_their_status(
    served: Served, error: ApiError, status: int, code: str | None, retries: bool, stream: bool
) -> None:
    served.script.error = error
    body = {"messages": USER, "stream": stream}

    async with served.http.post(served.url + CHAT, json=body) as response:
        answer = await response.json()

    assert response.status == status
    assert answer["error"]["code"] == code
    assert ("retry-after" in response.headers) is retries


async def test_the_official_client_retries_what_can_be_retried(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(error=NoReplicaError()))
    client = await served.client(max_retries=1)

    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="fake", messages=USER)

    assert len(served.script.requests) == 2


async def test_our_own_mistakes_are_500_in_the_same_form_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.script.error = RuntimeError("secret detail")

    with caplog.at_level(logging.ERROR):
        status, answer = await served.post(CHAT, {"messages": USER}, **{"x-request-id": "find-me"})

    assert status == 500
    assert answer["error"]["type"] == "server_error"
    assert "find-me" in answer["error"]["message"]
    assert "secret" not in answer["error"]["message"]
    [record] = [item for item in caplog.records if item.name == "quire_router.gateway"]
    assert record.exc_info is not None
    assert record.request_id == "find-me"  # type: ignore[attr-defined]  # an extra


async def test_our_own_mistakes_on_cool_paths_look_the_same(
    serve_with: Any, caplog: pytest.LogCaptureFixture
) -> None:
    script = ScriptedDispatcher()
    served = await serve_with(script)
    script.files = None  # type: ignore[assignment]  # the mistake

    status, answer = await served.post("/tokenize", {"prompt": "a"})

    assert status == 500
    assert answer["error"]["type"] == "server_error"
    assert caplog.records


async def test_no_prompt_is_ever_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="quire_router"):
        await served.post(CHAT, {"messages": [{"role": "user", "content": "my secret"}]})
        served.script.error = RuntimeError("x")
        await served.post(CHAT, {"messages": [{"role": "user", "content": "my secret"}]})

    assert "my secret" not in caplog.text


async def test_nothing_is_served_before_a_replica_was_ready(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(model=None, is_ready=False))

    for path in ("/v1/models", "/v1/models/fake", "/ready"):
        status, text = await served.get(path)
        assert status == 503
        assert "no_replica_available" in text
    status, answer = await served.post(CHAT, {"model": "fake", "messages": USER})
    assert status == 503
    assert answer["error"]["code"] == "no_replica_available"
    assert (await served.get("/health"))[0] == 200

    served.script.model, served.script.is_ready = model_info(), True
    assert (await served.get("/v1/models"))[0] == 200
    assert (await served.get("/ready"))[0] == 200


async def test_models_stay_listed_while_no_replica_is_ready(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(is_ready=False))

    assert (await served.get("/ready"))[0] == 503
    assert (await served.get("/v1/models"))[0] == 200


async def test_a_shutdown_that_cannot_wait_tells_every_client(serve_with: Any) -> None:
    served = await serve_with(ScriptedDispatcher(hang_after=2))
    client = await served.client()
    stream = await client.chat.completions.create(model="fake", messages=USER, stream=True)
    await anext(stream)
    await anext(stream)

    served.app.abort_all()

    with pytest.raises(openai.APIError, match="shutting down"):
        await anext(stream)
    assert served.script.generations[0].was_cancelled
