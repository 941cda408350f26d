from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from quire_engine.config import ModelConfig
from quire_engine.model.source import resolve
from quire_engine.rpc.chat_template import ChatTemplate, ChatTemplateError, chat_template
from tiny_tokenizers import byte_level_json

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# After Mistral: alternating roles, enforced.
ALTERNATING = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant!') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- ' [INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
# After Qwen: namespace, reversed loops, tools as JSON, reasoning, tool calls as objects.
TOOLS = """{%- if tools %}
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if ns.last < 0 and message.role == 'user' %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
<{{ message.role }}>{{ message.content if message.content is string else '' }}
    {%- if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}
    {%- for call in message.tool_calls or [] %}
<call>{{ call.function.name }}(
        {%- for name, value in call.function.arguments.items() -%}
            {{ name }}={{ value | tojson(indent=2) }}{% if not loop.last %}, {% endif %}
        {%- endfor %})
    {%- endfor %}
{% endfor %}
{%- if add_generation_prompt %}<assistant>
    {%- if enable_thinking is false %}<no-think>{% endif %}
{%- endif %}
last={{ ns.last }}"""
# After Llama 3: loop controls, dates, a block tag that only training needs.
CONTROLS = """{{- bos_token }}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% if loop.index > 3 %}
        {% break %}
    {% endif %}
    {% generation %}
{{ message.role }}: {{ message.content }}
    {% endgeneration %}
{% endfor %}
{{ dict(a=1) | tojson }} {{ "<>&'" | tojson }} {{ strftime_now('%Y') | length }}
"""
# After Gemma 3 and Llama 4: content as a string or a list of parts.
PARTS = """{% for message in messages %}<{{ message.role }}>
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}
    {%- for part in message['content'] %}[{{ part['type'] }}]{{ part['text'] | trim }}{% endfor %}
{%- endif %}</{{ message.role }}>
{% endfor %}"""
DOCUMENTS = """{% for document in documents %}{{ document.title }}: {{ document.text }}
{% endfor %}{{ messages[0].content }}{% if suffix is defined %}{{ suffix }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "alternating": ALTERNATING,
    "tools": TOOLS,
    "controls": CONTROLS,
    "parts": PARTS,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "<b>é</b>", "parameters": {"type": "object"}},
}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "What's <up>, \N{GRINNING FACE}?"}],
    "three turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello. \n"},
        {"role": "user", "content": "Bye"},
    ],
    "ends with the assistant": [
        {"role": "user", "content": "Count"},
        {"role": "assistant", "content": "one, two, "},
    ],
    "reasoning": [
        {"role": "user", "content": "Think"},
        {"role": "assistant", "content": "Done", "reasoning": "hm"},
    ],
}


@pytest.fixture(scope="module")
def peer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(byte_level_json())
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types
        tokenizer_object=tokenizer, **SPECIAL
    )


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendering_equals_that_of_transformers(
    peer: PreTrainedTokenizerFast, template: str, chat: str, continues: bool
) -> None:
    switches: dict[str, Any] = {
        "tools": [WEATHER],
        "add_generation_prompt": not continues,
        "continue_final_message": continues,
    }

    ours = ChatTemplate(TEMPLATES[template], SPECIAL).render(CHATS[chat], **switches)

    theirs = peer.apply_chat_template(
        CHATS[chat], chat_template=TEMPLATES[template], tokenize=False, **switches
    )
    assert ours == theirs


def test_the_demo_models_template_renders_as_with_transformers(
    peer: PreTrainedTokenizerFast,
) -> None:
    source = resolve(ModelConfig())
    messages = CHATS["three turns"]

    ours = chat_template(source.chat_template, source.special_tokens).render(messages)

    assert ours == peer.apply_chat_template(
        messages, chat_template=source.chat_template, tokenize=False, add_generation_prompt=True
    )
    assert ours.endswith("Bye<|im_end|>\n<|im_start|>assistant\n")


def test_documents_and_variables_reach_the_template(peer: PreTrainedTokenizerFast) -> None:
    documents = [{"title": "a", "text": "b"}]

    ours = ChatTemplate(DOCUMENTS).render(
        CHATS["one question"], documents=documents, variables={"suffix": "!"}
    )

    assert ours == peer.apply_chat_template(
        CHATS["one question"],
        chat_template=DOCUMENTS,
        tokenize=False,
        documents=documents,
        suffix="!",
    )


def test_variables_win_over_the_models_but_never_replace_the_messages() -> None:
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", SPECIAL)

    text = template.render(CHATS["three turns"], variables={"bos_token": "B", "messages": []})

    assert text == "BHi"


def test_text_parts_become_text_where_the_template_reads_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}, "three"]

    text = ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": parts}])

    assert text == "one\ntwo\nthree"


def test_text_parts_stay_parts_where_the_template_reads_them(
    peer: PreTrainedTokenizerFast,
) -> None:
    part = {"type": "text", "text": " one "}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [part, part]}]

    ours = ChatTemplate(PARTS).render(messages)

    assert ours == "<user>[text]one[text]one</user>\n"
    assert ours == peer.apply_chat_template(messages, chat_template=PARTS, tokenize=False)


@pytest.mark.parametrize(
    "source",
    [
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
        "{% set c = messages[0]['content'] %}{% for part in c %}{{ part.text }}{% endfor %}",
        "{% for part in messages[0].content | list %}{{ part['text'] }}{% endfor %}",
    ],
)
def test_a_string_becomes_a_part_where_the_template_reads_parts_alone(source: str) -> None:
    assert ChatTemplate(source).render([{"role": "user", "content": "hello"}]) == "hello"


def test_arguments_of_tool_calls_are_objects_for_the_template() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": [1], "y": "z"}'}}
    empty = {"type": "function", "function": {"name": "g", "arguments": ""}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, empty]}

    text = ChatTemplate(TOOLS, SPECIAL).render([message], add_generation_prompt=False)

    assert '<call>f(x=[\n  1\n], y="z")' in text
    assert "<call>g()" in text
    assert call["function"] == {"name": "f", "arguments": '{"x": [1], "y": "z"}'}


def test_arguments_that_are_no_json_stay_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{broken"}}
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments }}")

    assert template.render([{"role": "assistant", "tool_calls": [call]}]) == "{broken"


def test_continuing_works_on_the_last_part_of_a_message() -> None:
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "go on"}]}]

    text = ChatTemplate(PARTS).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )

    assert text == "<assistant>[text]go on"
    assert messages[0]["content"] == [{"type": "text", "text": "go on"}]


@pytest.mark.parametrize(
    ("source", "messages", "message"),
    [
        (ALTERNATING, [{"role": "assistant", "content": "x"}], r"^Conversation roles must altern"),
        (CHATML, [], "at least one message"),
        (CHATML, ["hello"], "a message must be an object, got str"),
        (CHATML, [{"role": "user", "content": 5}], "a string or a list of parts, got int"),
        (CHATML, [{"role": "user", "content": None}], "the chat template failed: TypeError"),
        (CHATML, [{"role": "assistant", "tool_calls": 5}], "tool_calls must be a list, got int"),
        (CHATML, [{"content": "x"}], "'dict object' has no attribute 'role'"),
        (
            CHATML,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "content parts must be text; got a part of type 'image_url'",
        ),
        (CHATML, [{"role": "user", "content": [{"type": "text"}]}], "must have a string 'text'"),
        ("{{ 1 / 0 }}", [{"role": "user"}], "ZeroDivisionError"),
        ("{{ messages.append(1) }}", [{"role": "user"}], "append"),
        ("{{ ''.__class__.__mro__ }}", [{"role": "user"}], "unsafe"),
        ("{% set ns = namespace(__x=1) %}", [{"role": "user"}], "may not set .* '__x'"),
    ],
)
def test_what_cannot_be_rendered_is_one_clear_error(
    source: str, messages: list[Any], message: str
) -> None:
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source).render(messages)


def test_continuing_and_a_generation_prompt_exclude_each_other() -> None:
    with pytest.raises(ChatTemplateError, match="exclude each other"):
        ChatTemplate(CHATML).render(CHATS["one question"], continue_final_message=True)


def test_continuing_a_message_that_the_template_drops_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="does not work with this chat template"):
        ChatTemplate("{{ messages[0].role }}").render(
            CHATS["one question"], add_generation_prompt=False, continue_final_message=True
        )


def test_a_template_that_is_not_jinja_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match="the chat template is not valid: "):
        ChatTemplate("{% for %}")


@pytest.mark.parametrize("source", [None, ""])
def test_a_model_without_a_template_says_what_to_do(source: str | None) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template; give one with --chat-template"):
        chat_template(source)


def test_a_template_is_compiled_once() -> None:
    assert chat_template(CHATML, SPECIAL) is chat_template(CHATML, dict(SPECIAL))
    assert chat_template(CHATML, SPECIAL) is not chat_template(CHATML)
