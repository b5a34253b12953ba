"""Anthropic's SDK for Python: it speaks to `/v1/messages`, with its key in `X-API-Key`."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.end_to_end.clients.asked import COMPOSITION, MAX_TOKENS, MESSAGES, TOOL, Birth, is_look, text

# the SDK has no parameters for sampling any more
FIXED: dict[str, Any] = {"messages": MESSAGES, "max_tokens": MAX_TOKENS, "extra_body": {"temperature": 0}}
COMPOSED: dict[str, Any] = {"extra_body": {"temperature": 0, "composition": COMPOSITION}}


def client(url: str) -> Any:
    return Anthropic(base_url=url, api_key="none", max_retries=0)


def chat(url: str) -> None:
    answer = client(url).messages.create(model="small-chat", **FIXED)
    assert answer.content[0].text == text(url, model="small-chat")
    count = client(url).messages.count_tokens(model="small-chat", messages=MESSAGES)
    used = answer.usage
    assert count.input_tokens == used.input_tokens + used.cache_read_input_tokens


def composition(url: str) -> None:
    answer = client(url).messages.create(model="large", **FIXED | COMPOSED)
    assert answer.content[0].text == text(url, model="large", composition=COMPOSITION)


def stream(url: str) -> None:
    with client(url).messages.stream(model="large-proxy", **FIXED) as events:
        said = "".join(events.text_stream)
        assert events.get_final_text() == said == text(url, model="large-proxy")


def schema(url: str) -> None:
    body = FIXED | {"max_tokens": 100, "model": "large-proxy"}
    answer = client(url).messages.parse(**body, output_format=Birth)
    assert isinstance(answer.parsed_output, Birth)


def tools(url: str) -> None:
    tool = {"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = FIXED | {"max_tokens": 60, "model": "small-chat", "tools": [tool], "tool_choice": choice}
    answer = client(url).messages.create(**body)
    use = next(block for block in answer.content if block.type == "tool_use")
    is_look(use.name, use.input)
    assert answer.stop_reason == "tool_use"


def refusals(url: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="composition"):
        client(url).messages.create(model="large", **FIXED | {"extra_body": {"compositon": COMPOSITION}})
    with pytest.raises(anthropic.NotFoundError, match="large-prox"):
        client(url).messages.create(model="large-prox", **FIXED)
