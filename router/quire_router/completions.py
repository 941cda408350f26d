"""POST /v1/completions: one or several prompts, text or token ids."""

from collections.abc import Sequence
from typing import Any

from quire_engine.rpc import engine_pb2
from quire_router.exchange import Exchange
from quire_router.generation import Generation
from quire_router.limits import output_limit
from quire_router.openai.completion_format import CompletionFormat, CompletionPrompt
from quire_router.openai.requests import DEFAULT_COMPLETION_TOKENS, CompletionRequest
from quire_router.openai.results import Result
from quire_router.sampling import check_against_model, check_vocabulary, sampling_params
from quire_router.service import Service
from quire_router.sse import send_stream, send_whole

PARAM = "prompt"


class CompletionHandler:
    """Answers text completions."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, exchange: Exchange, body: dict[str, Any]) -> None:
        service = self._service
        request = CompletionRequest.parse(body)
        model = service.model(request.model)
        check_against_model(request, model, num_logprobs=request.logprobs, param="logprobs")
        await service.tokenizer()
        # All prompts are checked before the first one costs anything.
        prompts = [await self._prompt(prompt, request, model) for prompt in request.prompt]
        sampling = [_sampling(request, model, len(prompt.token_ids)) for prompt in prompts]
        format_ = CompletionFormat(
            request,
            service.envelope(exchange, request, model, prefix="cmpl"),
            prompts,
            as_ids=request.return_tokens_as_token_ids or service.config.return_tokens_as_token_ids,
        )
        generations = [
            self._generation(exchange, request, params, prompt.token_ids)
            for params, prompt in zip(sampling, prompts, strict=True)
        ]
        if request.stream:
            options = service.stream_options(request)
            await send_stream(exchange, generations, format_.stream(), options, service.metrics)
        else:
            results = [Result.empty(request.num_candidates) for _ in prompts]
            await send_whole(exchange, generations, results, format_, service.metrics)

    async def _prompt(
        self, prompt: str | Sequence[int], request: CompletionRequest, model: engine_pb2.ModelInfo
    ) -> CompletionPrompt:
        service = self._service
        if not isinstance(prompt, str) and prompt:
            check_vocabulary(PARAM, max(prompt), model.vocab_size)
        token_ids = await service.token_ids(
            prompt,
            request,
            model,
            add_special_tokens=request.add_special_tokens,
            num_output_tokens=request.max_tokens or 1,
            param=PARAM,
        )
        if not request.echo:
            return CompletionPrompt(token_ids=token_ids)
        is_whole = isinstance(prompt, str) and request.truncate_prompt_tokens is None
        text = prompt if is_whole else await service.tokenization.decode(token_ids)
        first = service.tokenization.token_text(token_ids[0])
        return CompletionPrompt(token_ids=token_ids, text=str(text), first_token=first)

    def _generation(
        self,
        exchange: Exchange,
        request: CompletionRequest,
        sampling: engine_pb2.SamplingParams,
        token_ids: Sequence[int],
    ) -> Generation:
        generation = self._service.generate(exchange, request, sampling, token_ids)
        return PromptOnly(generation) if request.max_tokens == 0 else generation


class PromptOnly:
    """A generation of which only the prompt's side counts (`max_tokens` is 0).

    Engines generate one token at least; it is left out.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def replica(self) -> str:
        return self._generation.replica

    async def next(self) -> engine_pb2.GenerateResponse:
        """Return the next response with its outputs emptied."""
        response = await self._generation.next()
        for output in response.outputs:
            index, has_ended = output.index, output.finish_reason
            output.Clear()
            output.index = index
            if has_ended:
                output.finish_reason = engine_pb2.FINISH_REASON_LENGTH
        return response

    def cancel(self) -> None:
        self._generation.cancel()


def _sampling(
    request: CompletionRequest, model: engine_pb2.ModelInfo, num_prompt_tokens: int
) -> engine_pb2.SamplingParams:
    requested = 1 if request.max_tokens == 0 else request.max_tokens
    room = output_limit(
        num_prompt_tokens, requested, max_model_len=model.max_model_len, param=PARAM
    )
    max_tokens = min(room, DEFAULT_COMPLETION_TOKENS) if requested is None else requested
    ranks = request.num_candidates > request.n
    sampling = sampling_params(
        request,
        n=request.num_candidates,
        max_tokens=max_tokens,
        logprobs=0 if ranks and request.logprobs is None else request.logprobs,
    )
    if request.echo and request.logprobs is not None and request.prompt_logprobs is None:
        sampling.prompt_logprobs = request.logprobs
    return sampling
