"""From a chat to the prompt text that the model was trained on."""

from pathlib import Path
from typing import Any

import orjson

from quire_engine.rpc.chat_template import ChatTemplateError, chat_template
from quire_router.config import RouterConfig
from quire_router.errors import BadRequestError, ConfigError, UnsupportedError
from quire_router.generation import TokenizerFiles
from quire_router.openai.requests import ChatRequest


class PromptRenderer:
    """Renders chats with the model's template, the operator's or the request's."""

    def __init__(self, config: RouterConfig) -> None:
        """Read the operator's template.

        Raises:
            ConfigError: it is neither an existing file nor a template.
        """
        self._template = _template_text(config.chat_template)
        self._trusts_requests = config.trust_request_chat_template
        self._default_variables = config.default_chat_template_kwargs or {}

    def render(self, request: ChatRequest, files: TokenizerFiles) -> str:
        """Return the prompt of a chat.

        Raises:
            BadRequestError: the template refuses the messages; its own words say why.
        """
        source = self._source(request, files)
        special_tokens = orjson.loads(files.special_tokens or "{}")
        try:
            return chat_template(source, special_tokens).render(
                _messages(request, source),
                add_generation_prompt=request.opens_new_message,
                continue_final_message=request.continue_final_message,
                tools=request.tools or None,
                documents=request.documents,
                variables=self._variables(request),
            )
        except ChatTemplateError as error:
            raise BadRequestError(str(error), param="messages") from error
        except RecursionError as error:  # arguments of tool calls are JSON in JSON
            raise BadRequestError("messages are nested too deeply", param="messages") from error

    def _source(self, request: ChatRequest, files: TokenizerFiles) -> str:
        if request.chat_template is None:
            return self._template or files.chat_template
        if not self._trusts_requests:
            raise UnsupportedError(
                "chat_template is not taken from requests here (--trust-request-chat-template)",
                param="chat_template",
            )
        return request.chat_template

    def _variables(self, request: ChatRequest) -> dict[str, Any]:
        variables = {**self._default_variables, **request.chat_template_kwargs}
        if request.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", request.reasoning_effort)
        return variables


def _messages(request: ChatRequest, source: str) -> list[dict[str, Any]]:
    # "developer" is OpenAI's newer name of "system"; most templates know only the older.
    if "developer" in source:
        return request.messages
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in request.messages
    ]


def _template_text(value: str | None) -> str:
    if not value:
        return ""
    if "{" in value or "\n" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read chat_template {value}: {error}") from error
