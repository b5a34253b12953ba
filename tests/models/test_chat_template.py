"""What templates of the families can say, found by asking them. The templates are short ones of our own."""

from __future__ import annotations

import pytest

from motet.models.chat_template import ChatTemplate
from tests.fakes import CHAT_TEMPLATE, byte_tokenizer

TOOLS = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
TURN = "<|{{ message.role }}|>{{ message.content }}"
OPENING = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def template(calls: str, *, tools: str = TOOLS) -> str:
    body = f"{TURN}{{% for call in message.tool_calls or [] %}}{calls}{{% endfor %}}"
    return f"{tools}{{% for message in messages %}}{body}{{% endfor %}}{OPENING}"


HERMES = template(
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>"
)
AS_TEXT = template(
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments + "" }}}</tool_call>'
)
LLAMA = template(
    "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call only') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}'
)
MISTRAL = template(
    "{% if call.id | length != 9 %}{{ raise_exception('ids have nine') }}{% endif %}"
    "{{ '[TOOL_CALLS] [' if loop.first else ', ' }}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}'
    "{{ ']' if loop.last }}"
)
MISTRAL_V11 = template("[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}")
UNKNOWN = template("<call {{ call.function.name }}={{ call.function.arguments | tojson }}>")


@pytest.mark.parametrize(
    ("source", "name", "as_objects", "is_single"),
    [
        (HERMES, "hermes", True, False),
        (AS_TEXT, "hermes", False, False),
        (LLAMA, "llama3_json", True, True),
        (MISTRAL, "mistral", True, False),
        (MISTRAL_V11, "mistral_v11", True, False),
        (UNKNOWN, None, True, False),
    ],
)
def test_the_format_is_the_one_that_reads_back_what_the_template_writes(
    source: str, name: str | None, as_objects: bool, is_single: bool
) -> None:
    asked = ChatTemplate(byte_tokenizer(chat_template=source).hf)
    style = asked.calls
    assert style is not None
    assert (style.format.name if style.format else None, style.as_objects, style.is_single) == (
        name,
        as_objects,
        is_single,
    )
    assert asked.takes_tools
    assert asked.takes_results


def test_a_template_without_tools() -> None:
    asked = ChatTemplate(byte_tokenizer(chat_template=CHAT_TEMPLATE).hf)
    assert asked.calls is None
    assert not asked.takes_tools
    assert not asked.takes_results
    assert asked.takes_system
    assert asked.think_tags is None


def test_a_template_that_refuses_systems() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    assert not ChatTemplate(byte_tokenizer(chat_template=source).hf).takes_system


@pytest.mark.parametrize(("written", "begin"), [("<think></think>", "<think>"), ("[THINK][/THINK]", "[THINK]")])
def test_tags_of_thoughts_stand_in_the_template(written: str, begin: str) -> None:
    tags = ChatTemplate(byte_tokenizer(chat_template=CHAT_TEMPLATE + f"{{# {written} #}}").hf).think_tags
    assert tags is not None
    assert tags.begin == begin


def test_each_role_is_given_contents_in_the_form_that_it_is_read_in() -> None:
    """A template that walks over the user's parts alone printed the others' lists as Python writes them."""
    part = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    for walked in ("user", "system", "assistant"):
        content = f"{{% if message.role == '{walked}' %}}{part}{{% else %}}{{{{ message.content }}}}{{% endif %}}"
        body = "<|{{ message.role }}|>" + content
        tokenizer = byte_tokenizer(chat_template=f"{{% for message in messages %}}{body}{{% endfor %}}")
        turns = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant")]
        assert tokenizer.render_chat(turns) == "<|system|>SYSTEM<|user|>USER<|assistant|>ASSISTANT"
        assert tokenizer.template.takes_system
