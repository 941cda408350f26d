"""A router over real sockets, in front of a dispatcher that answers as a test scripts it."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import aiohttp
import openai
from prometheus_client import CollectorRegistry, generate_latest

from quire_engine.rpc import engine_pb2 as pb
from quire_engine.testing.tokenizer import CHAT_TEMPLATE, EOS_TOKEN_ID, VOCAB_SIZE, tokenizer_json
from quire_router.app import RouterApp
from quire_router.config import RouterConfig
from quire_router.decisions import DecisionLog
from quire_router.dispatcher import PoolDispatcher
from quire_router.errors import ApiError, NoReplicaError
from quire_router.generation import TokenizerFiles
from quire_router.pool import Pool
from quire_router.pool_config import PoolConfig
from quire_router.reporting import Reporter
from quire_router.server import QuietServer, uvicorn_config
from quire_router.traces import NO_GENERATION, GenerationTrace

MODEL = "fake"
MAX_MODEL_LEN = 512
DEADLINE_S = 60.0
TOKENIZER = tokenizer_json().encode()


def model_info(**changes: Any) -> pb.ModelInfo:
    fields = {
        "served_model_names": [MODEL, "org/alias"],
        "model": "fake",
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": VOCAB_SIZE,
        "eos_token_ids": [EOS_TOKEN_ID],
        "max_logprobs": 20,
        "created": 1_700_000_000,
        "version": "1.2.3",
    }
    return pb.ModelInfo(**{**fields, **changes})


def tokenizer_files(**changes: Any) -> TokenizerFiles:
    fields = {
        "sha256": sha256(TOKENIZER).hexdigest(),
        "data": TOKENIZER,
        "chat_template": CHAT_TEMPLATE,
        "generation_config": "{}",
        "special_tokens": '{"eos_token": "<|endoftext|>"}',
    }
    return TokenizerFiles(**{**fields, **changes})


def position(token_id: int, *, num_top: int, logprob: float = -0.5) -> pb.PositionLogprobs:
    """The chosen token has rank 2; token 65 ("A") has rank 1, then come 66, 67, ..."""
    others = [65 + number for number in range(num_top)]
    ids = [token_id, *others]
    return pb.PositionLogprobs(
        token_ids=ids,
        logprobs=[logprob, *(-0.25 * (number + 1) for number in range(num_top))],
        ranks=[2, *(1 if number == 0 else number + 2 for number in range(num_top))],
        tokens=[bytes([item]) if item < 256 else b"" for item in ids],
    )


@dataclass
class ScriptedDispatcher:
    """Every completion is `answer`, one byte a step, until `max_tokens`."""

    answer: str = "Hello!"
    model: pb.ModelInfo | None = field(default_factory=model_info)
    files: TokenizerFiles = field(default_factory=tokenizer_files)
    is_ready: bool = True
    is_synced: bool = True
    error: ApiError | Exception | None = None
    """Raised once `error_after` responses were given."""
    error_after: int = 0
    hang_after: int | None = None
    """Wait forever once this many responses were given."""
    stop_string: str = ""
    num_cached: int = 0
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    generations: list["ScriptedGeneration"] = field(default_factory=list)

    reports: Reporter = field(
        default_factory=lambda: Reporter(Pool(PoolConfig(), [], print), DecisionLog())
    )

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def models(self) -> Sequence[pb.ModelInfo]:
        return [self.model] if self.model is not None and self.is_ready else []

    def served(self) -> pb.ModelInfo | None:
        return self.model

    def tokenizer(self) -> TokenizerFiles:
        if self.model is None:
            raise NoReplicaError
        return self.files

    def generate(
        self,
        request: pb.GenerateRequest,
        *,
        token_ids: Sequence[int],
        trace: GenerationTrace = NO_GENERATION,
    ) -> "ScriptedGeneration":
        recorded = pb.GenerateRequest()
        recorded.CopyFrom(request)
        recorded.prompt_token_ids.extend(token_ids)
        self.requests.append(recorded)
        self.generations.append(ScriptedGeneration(self, recorded))
        return self.generations[-1]


class ScriptedGeneration:
    def __init__(self, script: ScriptedDispatcher, request: pb.GenerateRequest) -> None:
        self.script = script
        self.request = request
        self.was_cancelled = False
        self.num_given = 0
        steps = responses(script, request)
        self._left = [merged(steps)] if request.final_only else steps

    @property
    def replica(self) -> str:
        return "replica-0"

    async def next(self) -> pb.GenerateResponse:
        if self.script.error is not None and self.num_given == self.script.error_after:
            raise self.script.error
        if self.num_given == self.script.hang_after:
            await asyncio.Event().wait()
        self.num_given += 1
        await asyncio.sleep(0)
        return self._left.pop(0)

    def cancel(self) -> None:
        self.was_cancelled = bool(self._left) or self.was_cancelled


def responses(script: ScriptedDispatcher, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    sampling = request.sampling
    n = sampling.n or 1
    data = script.answer.encode()
    room = sampling.max_tokens or MAX_MODEL_LEN
    is_cut = len(data) > room
    data = data[:room]
    prompt = pb.PromptInfo(
        num_prompt_tokens=len(request.prompt_token_ids), num_cached_tokens=script.num_cached
    )
    if sampling.HasField("prompt_logprobs"):
        prompt.prompt_logprobs.extend(
            position(item, num_top=sampling.prompt_logprobs)
            for item in request.prompt_token_ids[1:]
        )
    steps = [pb.GenerateResponse(prompt=prompt)]
    for number, byte in enumerate(data):
        step = pb.GenerateResponse()
        for index in range(n):
            output = step.outputs.add(
                index=index, token_ids=[byte], text=bytes([byte]).decode(errors="replace")
            )
            if sampling.HasField("logprobs"):
                output.logprobs.append(
                    position(byte, num_top=sampling.logprobs, logprob=-0.5 - index)
                )
            if number == len(data) - 1:
                output.finish_reason = pb.FINISH_REASON_LENGTH if is_cut else pb.FINISH_REASON_STOP
                if script.stop_string and not is_cut:
                    output.stop_string = script.stop_string
        steps.append(step)
    steps[-1].usage.num_prompt_tokens = len(request.prompt_token_ids)
    steps[-1].usage.num_completion_tokens = n * len(data)
    return steps


def merged(steps: Sequence[pb.GenerateResponse]) -> pb.GenerateResponse:
    whole = pb.GenerateResponse()
    for step in steps:
        whole.MergeFrom(step)
    del whole.outputs[:]
    by_index: dict[int, pb.Output] = {}
    for step in steps:
        for output in step.outputs:
            target = by_index.setdefault(output.index, pb.Output(index=output.index))
            text = target.text + output.text
            target.MergeFrom(output)
            target.text = text
    whole.outputs.extend(by_index.values())
    return whole


@dataclass
class Served:
    """A running router."""

    app: RouterApp
    script: ScriptedDispatcher
    port: int
    http: aiohttp.ClientSession
    clients: contextlib.AsyncExitStack
    registry: CollectorRegistry

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def client(self, **options: Any) -> openai.AsyncOpenAI:
        defaults = {"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0}
        return await self.clients.enter_async_context(openai.AsyncOpenAI(**{**defaults, **options}))

    def metrics(self) -> str:
        return generate_latest(self.registry).decode()

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else None
        kwargs = {"data": data} if data is not None else {"json": body}
        async with self.http.post(self.url + path, headers=headers, **kwargs) as response:
            return response.status, await response.json(content_type=None)

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.http.get(self.url + path, headers=headers) as response:
            return response.status, await response.text()

    async def events(self, path: str, body: dict[str, Any]) -> list[str]:
        """Data of the server-sent events of a streamed answer."""
        async with self.http.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"].startswith("text/event-stream")
            text = await response.text()
        assert text.endswith("\n\n")
        events = text.removesuffix("\n\n").split("\n\n")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [event.removeprefix("data: ") for event in events]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds.

    Raises:
        AssertionError: it does not, within DEADLINE_S.
    """
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    for delay_s in itertools.repeat(0.005):
        if condition():
            return
        assert asyncio.get_running_loop().time() < deadline, "not in time"
        await asyncio.sleep(delay_s)


@contextlib.asynccontextmanager
async def serve(
    script: ScriptedDispatcher, *, api_keys: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[Served]:
    registry = CollectorRegistry()
    app = RouterApp(RouterConfig(**options), script, registry, api_keys=api_keys)
    async with serve_app(app, script, registry) as served:
        yield served


@contextlib.asynccontextmanager
async def serve_engine(address: str) -> AsyncIterator[Served]:
    """The whole router in front of one engine; its script is not used."""
    registry = CollectorRegistry()
    config = RouterConfig(replicas=(address,))
    app = RouterApp(config, PoolDispatcher(config, registry), registry)
    async with serve_app(app, ScriptedDispatcher(), registry) as served:
        yield served


@contextlib.asynccontextmanager
async def serve_app(
    app: RouterApp, script: ScriptedDispatcher, registry: CollectorRegistry
) -> AsyncIterator[Served]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = QuietServer(uvicorn_config(app))
    async with app.running():
        task = asyncio.create_task(server.serve(sockets=[listener]))
        async with aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as clients:
            yield Served(app, script, listener.getsockname()[1], http, clients, registry)
            app.abort_all()
        server.should_exit = server.force_exit = True
        await task
