"""What the handlers of all generating routes share: the model, its tokenizer, new generations."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quire_engine.rpc import engine_pb2
from quire_router.config import RouterConfig
from quire_router.errors import ModelNotFoundError, NoReplicaError
from quire_router.exchange import Exchange
from quire_router.generation import Dispatcher, Generation, TokenizerFiles
from quire_router.http_metrics import HttpMetrics
from quire_router.lifecycle import Lifecycle
from quire_router.limits import check_not_empty, check_text_length, truncated
from quire_router.openai.envelope import Envelope
from quire_router.openai.requests import GenerationRequest, StreamOptions
from quire_router.prompts import PromptRenderer
from quire_router.tokenization import Tokenization


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of the router that handlers use."""

    config: RouterConfig
    dispatcher: Dispatcher
    tokenization: Tokenization
    renderer: PromptRenderer
    metrics: HttpMetrics
    lifecycle: Lifecycle

    def model(self, name: str | None) -> engine_pb2.ModelInfo:
        """Return the model that a client names; naming none means the only one there is.

        Raises:
            NoReplicaError: it is not known yet what will be served.
            ModelNotFoundError: it is known, and has another name.
        """
        model = self.dispatcher.served()
        if model is None:
            raise NoReplicaError("no replica has been ready yet; try again later")
        if name is not None and name not in model.served_model_names:
            raise ModelNotFoundError(name)
        return model

    @property
    def served_name(self) -> str:
        """The first name of what is served; empty before anything is."""
        model = self.dispatcher.served()
        return model.served_model_names[0] if model is not None else ""

    async def tokenizer(self) -> TokenizerFiles:
        """Return the tokenizer of the replicas, ready for use in `tokenization`."""
        files = self.dispatcher.tokenizer()
        await self.tokenization.use(files)
        return files

    async def token_ids(
        self,
        prompt: str | Sequence[int],
        request: GenerationRequest,
        model: engine_pb2.ModelInfo,
        *,
        add_special_tokens: bool,
        num_output_tokens: int,
        param: str,
    ) -> Sequence[int]:
        """Return the token ids of a prompt, truncated as the request wants.

        Raises:
            BadRequestError: the prompt is empty or cannot fit.
        """
        if isinstance(prompt, str):
            if request.truncate_prompt_tokens is None:
                check_text_length(
                    prompt,
                    max_model_len=model.max_model_len,
                    max_token_chars=self.tokenization.max_token_chars,
                    param=param,
                )
            ids = await self.tokenization.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            ids = prompt
        check_not_empty(ids, param=param)
        return truncated(
            ids, request, num_output_tokens=num_output_tokens, max_model_len=model.max_model_len
        )

    def generate(
        self,
        exchange: Exchange,
        request: GenerationRequest,
        sampling: engine_pb2.SamplingParams,
        token_ids: Sequence[int],
    ) -> Generation:
        """Start a generation."""
        # Clients may repeat their request ids; engines need them unique.
        unique = f"{request.request_id or exchange.request_id}-{secrets.token_hex(4)}"
        message = engine_pb2.GenerateRequest(
            request_id=unique,
            sampling=sampling,
            priority=request.priority,
            cache_salt=request.cache_salt or "",
            final_only=not request.stream,
            traceparent=exchange.trace_context.traceparent,
            tracestate=exchange.trace_context.tracestate,
            client_request_id=exchange.request_id,
        )
        exchange.trace.asked(request.model or self.served_name, message)
        trace = exchange.trace.generation()
        return self.dispatcher.generate(message, token_ids=token_ids, trace=trace)

    def stream_options(self, request: GenerationRequest) -> StreamOptions:
        """Return what the stream carries, usage forced where the operator wants it."""
        options = request.stream_options
        if options.include_usage or not self.config.enable_force_include_usage:
            return options
        return replace(options, include_usage=True)

    def envelope(
        self,
        exchange: Exchange,
        request: GenerationRequest,
        model: engine_pb2.ModelInfo,
        *,
        prefix: str,
    ) -> Envelope:
        """Return the identity of the response."""
        return Envelope(
            id=f"{prefix}-{request.request_id or exchange.request_id}",
            created=int(time.time()),
            model=request.model or model.served_model_names[0],
            system_fingerprint=f"quire-{model.version}",
        )
