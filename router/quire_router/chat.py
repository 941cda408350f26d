"""POST /v1/chat/completions."""

from typing import Any

from quire_engine.rpc import engine_pb2
from quire_router.exchange import Exchange
from quire_router.limits import output_limit
from quire_router.openai.chat_format import ChatFormat
from quire_router.openai.requests import ChatRequest
from quire_router.openai.results import Result
from quire_router.sampling import check_against_model, sampling_params
from quire_router.service import Service
from quire_router.sse import send_stream, send_whole

PARAM = "messages"


class ChatHandler:
    """Answers chats."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange, body: dict[str, Any]) -> None:
        service = self._service
        request = ChatRequest.parse(body)
        model = service.model(request.model)
        check_against_model(request, model, num_logprobs=request.top_logprobs, param="top_logprobs")
        token_ids = await self.prompt(request, model)
        sampling = self._sampling(request, model, len(token_ids))
        format_ = ChatFormat(
            request,
            service.envelope(exchange, request, model, prefix="chatcmpl"),
            role=service.config.response_role,
            token_ids=token_ids,
            as_ids=request.return_tokens_as_token_ids or service.config.return_tokens_as_token_ids,
        )
        generation = service.generate(exchange, request, sampling, token_ids)
        if request.stream:
            options = service.stream_options(request)
            await send_stream(exchange, [generation], format_.stream(), options, service.metrics)
        else:
            results = [Result.empty(request.n)]
            await send_whole(exchange, [generation], results, format_, service.metrics)

    async def prompt(self, request: ChatRequest, model: engine_pb2.ModelInfo) -> list[int]:
        """Return the token ids of a rendered chat."""
        files = await self._service.tokenizer()
        token_ids = await self._service.token_ids(
            self._service.renderer.render(request, files),
            request,
            model,
            add_special_tokens=request.add_special_tokens,
            num_output_tokens=request.output_limit or 1,
            param=PARAM,
        )
        return list(token_ids)

    def _sampling(
        self, request: ChatRequest, model: engine_pb2.ModelInfo, num_prompt_tokens: int
    ) -> engine_pb2.SamplingParams:
        limit = request.output_limit
        output_limit(
            num_prompt_tokens,
            limit,
            max_model_len=model.max_model_len,
            param=PARAM,
            limit_param="max_completion_tokens" if request.max_completion_tokens else "max_tokens",
        )
        # Without a limit none is sent: the engine goes on until its context is full.
        return sampling_params(
            request, n=request.n, max_tokens=limit, logprobs=request.num_logprobs
        )
