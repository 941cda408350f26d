"""Chat templates: conversations to prompt text, rendered exactly as `transformers` renders them.

Used by the router, which gets the template from an engine, and by `LLM.chat`. A template comes from
a model's author, so it is foreign code: it runs in jinja2's immutable sandbox.

Clients send OpenAI's message shapes and templates expect simpler ones, so messages are adapted
first: a list of text parts becomes text (unless the template itself reads parts), the arguments of
tool calls become objects, and a message's reasoning gets every name that templates know it by.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

Message = Mapping[str, Any]
"""One message of a conversation, in OpenAI's form: role, content, tool_calls, ..."""

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "

# What code inside a template can raise: its own raise_exception, and what bad operands cause.
_RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplateError(Exception):
    """The conversation cannot be rendered; the message is the template's own where it has one."""


class ChatTemplate:
    """A compiled template with the special tokens it refers to. Immutable, usable from threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str | None] | None = None) -> None:
        """Compile `source`; `special_tokens` maps bos_token, eos_token and the like to their text.

        Raises:
            ChatTemplateError: the source is not valid jinja2.
        """
        self.source = source
        self._special_tokens = {
            name: token for name, token in (special_tokens or {}).items() if token is not None
        }
        self._template, self._reads_parts, self._reads_strings = _compile(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt text of a conversation; it holds its own special tokens.

        `continue_final_message` leaves the last message open, for the model to go on with it.
        `variables` are the request's chat_template_kwargs.

        Raises:
            ChatTemplateError: messages of a wrong shape, or refused by the template.
        """
        _check_switches(messages, add_generation_prompt, continue_final_message)
        chat = [self._adapt(message) for message in messages]
        final_text = _open_final_message(chat) if continue_final_message else ""
        values = {
            **self._special_tokens,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
            "messages": chat,
        }
        try:
            text: str = self._template.render(values)
        except _RENDER_ERRORS as error:
            raise ChatTemplateError(_message_of(error)) from error
        return _cut_at_tag(text, final_text) if continue_final_message else text

    def _adapt(self, message: Message) -> dict[str, Any]:
        """Return a copy of `message` in the shape that templates expect."""
        if not isinstance(message, Mapping):
            raise ChatTemplateError(f"a message must be an object, got {type(message).__name__}")
        adapted = _with_reasoning(message)
        content = adapted.get("content")
        if isinstance(content, str):
            if self._reads_parts and not self._reads_strings:
                adapted["content"] = [{"type": "text", "text": content}]
        elif isinstance(content, Sequence):
            texts = [_text_of(part) for part in content]
            adapted["content"] = (
                [{"type": "text", "text": text} for text in texts]
                if self._reads_parts
                else "\n".join(texts)
            )
        elif content is not None:
            raise ChatTemplateError(
                f"content must be a string or a list of parts, got {type(content).__name__}"
            )
        if calls := adapted.get("tool_calls"):
            if not isinstance(calls, Sequence):
                raise ChatTemplateError(f"tool_calls must be a list, got {type(calls).__name__}")
            adapted["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        return adapted


@lru_cache(maxsize=64)
def _cached(source: str, special_tokens: tuple[tuple[str, str | None], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens))


def chat_template(
    source: str | None, special_tokens: Mapping[str, str | None] | None = None
) -> ChatTemplate:
    """Return the compiled template of `source`, from a cache when it was seen before.

    Raises:
        ChatTemplateError: there is no template, or it is not valid jinja2.
    """
    if not source:
        raise ChatTemplateError(
            "this model has no chat template; give one with --chat-template, or send a plain prompt"
        )
    return _cached(source, tuple((special_tokens or {}).items()))


def _check_switches(
    messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
) -> None:
    if not messages:
        raise ChatTemplateError("a conversation needs at least one message")
    if add_generation_prompt and continue_final_message:
        raise ChatTemplateError(
            "add_generation_prompt and continue_final_message exclude each other: one opens a new "
            "message, the other goes on with the last"
        )


def _text_of(part: Any) -> str:
    """Return the text of one content part."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(_TEXT_PARTS[kind]) if kind in _TEXT_PARTS else None
    if isinstance(text, str):
        return text
    raise ChatTemplateError(
        f"content parts must be text; got a part of type {kind!r}"
        if kind not in _TEXT_PARTS
        else f"a content part of type {kind!r} must have a string {_TEXT_PARTS[kind]!r}"
    )


def _with_reasoning(message: Message) -> dict[str, Any]:
    """Copy a message, with its reasoning under the names that different templates read."""
    found = (message[name] for name in _REASONING_FIELDS if message.get(name) is not None)
    reasoning = next(found, None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_parsed_arguments(call: Any) -> Any:
    """Copy a tool call, its arguments as an object: clients send JSON text, templates loop."""
    if not (isinstance(call, Mapping) and isinstance(call.get("function"), Mapping)):
        return call
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments or "{}")
    except ValueError:
        return call  # The model wrote it; a template that only prints it need not care.
    return {**call, "function": {**call["function"], "arguments": parsed}}


def _open_final_message(chat: list[dict[str, Any]]) -> str:
    """Mark where the last message ends, in place, and return its text."""
    content = chat[-1].get("content")
    if isinstance(content, str) and content:
        chat[-1]["content"] = content + _CONTINUE_TAG
        return content
    if isinstance(content, list) and content:
        text: str = content[-1]["text"]
        content[-1] = {**content[-1], "text": text + _CONTINUE_TAG}
        return text
    raise ChatTemplateError("continue_final_message needs a last message with text to go on with")


def _cut_at_tag(text: str, final_text: str) -> str:
    """Drop the tag and everything that the template wrote after it."""
    tag = _CONTINUE_TAG.strip()
    if tag not in text or final_text.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message does not work with this chat template: it leaves out or "
            "changes the last message"
        )
    end = text.rindex(tag)
    if text[end : end + len(_CONTINUE_TAG)] == _CONTINUE_TAG:
        return text[:end]
    # The template trims messages, so the last message's own trailing space goes too.
    return text[:end].rstrip()


def _message_of(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error)
    return f"the chat template failed: {type(error).__name__}: {error}"


class _GenerationTag(Extension):
    """Accept `{% generation %}`, which marks assistant text for training, and render its body."""

    tags = {"generation"}  # noqa: RUF012 -- declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict(...)` without the class's attributes, which lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _TemplateNamespace(Namespace):
    """`namespace(...)` that refuses underscore names, which lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Positional as in jinja2, so that `namespace(self=...)` is an ordinary attribute.
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not set the attribute {name!r}")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Dump JSON as models have seen it; jinja2's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().astimezone().strftime(format_)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment


def _compile(source: str) -> tuple[Any, bool, bool]:
    """Compile, and find out whether the template reads content parts, and content strings."""
    environment = _environment()
    try:
        tree = environment.parse(source)
        template = environment.from_string(source)
    except TemplateError as error:
        raise ChatTemplateError(f"the chat template is not valid: {error}") from error
    tests_strings = any(test.name == "string" for test in tree.find_all(nodes.Test))
    return template, _loops_over_content(tree), tests_strings


def _loops_over_content(tree: nodes.Template) -> bool:
    """Tell whether any loop of the template runs over a message's content."""
    names = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _any_is_content(node.node, set())
    }
    return any(_any_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _any_is_content(expression: nodes.Node, names: set[str]) -> bool:
    """Tell whether `expression` is a message's content, or a variable that holds one."""
    match expression:
        case nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Name(name=name):
            return name in names
        case nodes.Filter(node=inner) if inner is not None:
            return _any_is_content(inner, names)
        case nodes.CondExpr(expr1=first, expr2=second):
            return any(_any_is_content(branch, names) for branch in (first, second) if branch)
    return False
