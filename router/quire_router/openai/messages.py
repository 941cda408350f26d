"""Checks of a chat's messages and tools: everything that no chat template could render."""

from typing import Any

from quire_router.errors import UnsupportedError
from quire_router.openai.fields import (
    array,
    mapping,
    missing,
    out_of_range,
    string,
    wrong_type,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
MAX_MESSAGES = 2**16


def check_messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Check `messages`: at least one, known roles, content of text only."""
    messages = array(name, value)
    if not messages:
        raise out_of_range(name, value, "an array of at least one message")
    if len(messages) > MAX_MESSAGES:
        raise out_of_range(name, len(messages), f"an array of at most {MAX_MESSAGES} messages")
    return [_check_message(f"{name}[{index}]", item) for index, item in enumerate(messages)]


def check_tools(name: str, value: Any) -> list[dict[str, Any]]:
    """Check `tools`: functions with names. The model sees them; its calls come back as text."""
    return [_check_tool(f"{name}[{index}]", item) for index, item in enumerate(array(name, value))]


def check_tool_choice(name: str, value: Any) -> str:
    """Check `tool_choice`: what would need parsing or forcing tool calls is refused."""
    if value in ("none", "auto"):
        return str(value)
    if value == "required" or isinstance(value, dict):
        raise UnsupportedError(
            f"{name} can only be 'none' or 'auto': this server does not force tool calls yet",
            param=name,
        )
    if isinstance(value, str):
        raise out_of_range(name, value, "one of none, auto, required")
    raise wrong_type(name, value, "a string or an object")


def _check_message(name: str, value: Any) -> dict[str, Any]:
    message = mapping(name, value)
    role = message.get("role")
    if role is None:
        raise missing(f"{name}.role")
    if string(f"{name}.role", role) not in ROLES:
        raise out_of_range(f"{name}.role", role, "one of " + ", ".join(ROLES))
    _check_content(f"{name}.content", message)
    calls = message.get("tool_calls")
    if calls is not None:
        for index, call in enumerate(array(f"{name}.tool_calls", calls)):
            _check_tool_call(f"{name}.tool_calls[{index}]", call)
    return message


def _check_content(name: str, message: dict[str, Any]) -> None:
    content = message.get("content")
    if content is None:
        # An assistant's message may consist of tool calls, a refusal or reasoning alone.
        if message["role"] != "assistant":
            raise missing(name)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(f"{name}[{index}]", part)
    elif not isinstance(content, str):
        raise wrong_type(name, content, "a string or an array of parts")


def _check_part(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    part = mapping(name, value)
    kind = part.get("type")
    if kind is None:
        raise missing(f"{name}.type")
    field = TEXT_PARTS.get(string(f"{name}.type", kind))
    if field is None:
        raise UnsupportedError(
            f"{name} has type {kind!r}; this model takes text only", param=f"{name}.type"
        )
    if part.get(field) is None:
        raise missing(f"{name}.{field}")
    string(f"{name}.{field}", part[field])


def _check_tool_call(name: str, value: Any) -> None:
    function = mapping(f"{name}.function", _required(name, "function", value))
    string(f"{name}.function.name", _required(f"{name}.function", "name", function))
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise wrong_type(f"{name}.function.arguments", arguments, "a string of JSON")


def _check_tool(name: str, value: Any) -> dict[str, Any]:
    tool = mapping(name, value)
    kind = _required(name, "type", tool)
    if string(f"{name}.type", kind) != "function":
        raise out_of_range(f"{name}.type", kind, "'function'")
    function = mapping(f"{name}.function", _required(name, "function", tool))
    string(f"{name}.function.name", _required(f"{name}.function", "name", function))
    return tool


def _required(name: str, key: str, value: Any) -> Any:
    found = mapping(name, value).get(key)
    if found is None:
        raise missing(f"{name}.{key}")
    return found
