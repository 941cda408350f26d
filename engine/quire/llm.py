"""Generation in this process, without a server: `LLM`, with the names and defaults of vLLM's."""

import gc
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from quire.llm_options import engine_config
from quire.offline import OfflineEngine, OfflineRequest
from quire.progress import progress_bar
from quire.prompts import Prompt, PromptLike, parse_prompts
from quire_engine.core.engine_core import EngineCore
from quire_engine.errors import ConfigError, InvalidRequestError, QuireError
from quire_engine.frontend.processor import Processor
from quire_engine.frontend.tokenizer import Tokenizer
from quire_engine.frontend.validation import ModelLimits
from quire_engine.model.source import resolve
from quire_engine.outputs import RequestOutput
from quire_engine.rpc.chat_template import ChatTemplate, ChatTemplateError, Message, chat_template
from quire_engine.sampling_params import SamplingParams

ParamsLike = SamplingParams | Sequence[SamplingParams] | None
Conversation = Sequence[Message]


class LLM:
    """A model, loaded in this process.

    Usage:
        llm = LLM("HuggingFaceTB/SmolLM2-135M-Instruct")
        [output] = llm.generate("The capital of France is", SamplingParams(temperature=0))
        output.outputs[0].text

    Not thread-safe. `close`, or leaving it as a context, gives the memory back.
    """

    def __init__(self, model: str = "", **options: Any) -> None:
        """Load `model`: a directory, a .gguf file or a name on the hub; empty is the demo model.

        `options` are the fields of `quire_engine.config`, such as max_model_len, dtype and
        gpu_memory_utilization. What vLLM knows beyond them is accepted with a warning.

        Raises:
            TypeError: an option that neither knows.
            ConfigError: there is no such model, or it cannot run as configured.
        """
        config = engine_config(model, options)
        # Imported here: torch takes seconds, and only a model needs it.
        from quire_engine.runner.factory import build_runner

        source = resolve(config.model)
        runner = build_runner(config)
        core = EngineCore(
            config,
            runner,
            prefix_model=source.name,
            eos_token_ids=frozenset(source.eos_token_ids),
        )
        text = None if config.model.skip_tokenizer_init else source.load_tokenizer()
        processor = Processor(
            Tokenizer.from_json(text) if text else None,
            ModelLimits(
                max_model_len=core.max_model_len,
                vocab_size=source.config["vocab_size"],
                max_logprobs=config.model.max_logprobs,
            ),
            defaults=source.generation_config,
        )
        self._use(core, processor, source.chat_template, source.special_tokens)

    @classmethod
    def from_parts(
        cls,
        core: EngineCore,
        processor: Processor,
        *,
        template: str | None = None,
        special_tokens: Mapping[str, str | None] | None = None,
    ) -> Self:
        """Build from a core and its processor, whatever runs the model."""
        llm = cls.__new__(cls)
        llm._use(core, processor, template, special_tokens or {})
        return llm

    def _use(
        self,
        core: EngineCore,
        processor: Processor,
        template: str | None,
        special_tokens: Mapping[str, str | None],
    ) -> None:
        self._open_engine: OfflineEngine | None = OfflineEngine(core, processor)
        self._template = template
        self._special_tokens = special_tokens

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: ParamsLike = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete each prompt, and return the outputs in the order of the prompts.

        `sampling_params` and `priority` are one for all, or one for each; without parameters, those
        that the model recommends. Outputs are whole, whatever their output_kind. Ctrl-C aborts
        everything and leaves the LLM usable.

        Raises:
            InvalidRequestError: a prompt or parameter that cannot work; nothing was computed.
        """
        return self._run(parse_prompts(prompts), sampling_params, priority, use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: ParamsLike = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer each conversation (one, or several), and return the outputs in their order.

        `chat_template` is the text of a template to use in place of the model's;
        `chat_template_kwargs` are further variables for it. Otherwise as `generate`.

        Raises:
            InvalidRequestError: there is no chat template, or it refuses a conversation.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if is_one else messages
        try:
            template = self._chat_template(chat_template)
            prompts = [
                Prompt(
                    text=template.render(
                        conversation,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=continue_final_message,
                        tools=tools,
                        documents=documents,
                        variables=chat_template_kwargs,
                    )
                )
                for conversation in conversations
            ]
        except ChatTemplateError as error:
            raise InvalidRequestError(str(error), "messages") from error
        return self._run(prompts, sampling_params, priority, use_tqdm, adds_special_tokens=False)

    def get_tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer.

        Raises:
            ConfigError: the LLM was made with skip_tokenizer_init.
        """
        tokenizer = self.llm_engine.processor.tokenizer
        if tokenizer is None:
            raise ConfigError("there is no tokenizer: skip_tokenizer_init is set")
        return tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return new parameters as the model's generation config recommends them."""
        return self.llm_engine.processor.sampling_params()

    def reset_prefix_cache(self) -> bool:
        """Forget every cached prefix; always succeeds."""
        self.llm_engine.core.reset_prefix_cache()
        return True

    def start_profile(self) -> None:
        """Record every step from the next one on, until `stop_profile`.

        The LLM was made with `profile`, the folder for traces; `profile_steps=0` leaves all
        recording to this method.

        Raises:
            ConfigError: it was made without.
            QuireError: steps are being recorded already.
        """
        self.llm_engine.core.profiler().start_profile()

    def stop_profile(self) -> None:
        """Write the trace and the table of kernels, which is printed too.

        Raises:
            ConfigError: the LLM was made without `profile`.
            QuireError: nothing is being recorded.
        """
        self.llm_engine.core.profiler().stop_profile()

    def close(self) -> None:
        """Give the model's memory back. The LLM cannot be used after."""
        self._open_engine = None
        gc.collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def llm_engine(self) -> OfflineEngine:
        """What runs this model's requests.

        Raises:
            QuireError: the LLM was closed.
        """
        if self._open_engine is None:
            raise QuireError("this LLM was closed")
        return self._open_engine

    def _chat_template(self, source: str | None) -> ChatTemplate:
        return chat_template(source or self._template, self._special_tokens)

    def _run(
        self,
        prompts: Sequence[Prompt],
        sampling_params: ParamsLike,
        priority: int | Sequence[int] | None,
        use_tqdm: bool | Callable[..., Any],
        *,
        adds_special_tokens: bool = True,
    ) -> list[RequestOutput]:
        engine = self.llm_engine
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        num_prompts = len(prompts)
        requests = [
            OfflineRequest(
                prompt=prompt, params=params, priority=rank, adds_special_tokens=adds_special_tokens
            )
            for prompt, params, rank in zip(
                prompts,
                _one_each("sampling_params", sampling_params, num_prompts, SamplingParams),
                _one_each("priority", priority or 0, num_prompts, int),
                strict=True,
            )
        ]
        with progress_bar(num_prompts, use_tqdm) as on_finished:
            return engine.run(requests, on_finished)


def _one_each(name: str, values: Any, num_prompts: int, type_: type) -> Sequence[Any]:
    """Return one value per prompt, of one for all or one for each."""
    each = values if isinstance(values, Sequence) else [values] * num_prompts
    if len(each) != num_prompts:
        raise InvalidRequestError(
            f"{name} must be one for all prompts or one for each: {num_prompts} prompts, "
            f"{len(each)} {name}",
            name,
        )
    for value in each:
        if not isinstance(value, type_):
            raise InvalidRequestError(
                f"{name} must be of type {type_.__name__}, got {value!r}", name
            )
    return each
