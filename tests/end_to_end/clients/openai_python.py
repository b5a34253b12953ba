"""The openai SDK for Python."""

from __future__ import annotations

import json
from typing import Any, cast

import openai
import pytest
from openai import OpenAI

from tests.end_to_end.clients.asked import (
    COMPOSITION,
    MAX_TOKENS,
    MESSAGES,
    QUESTION,
    TOOL,
    Birth,
    is_look,
    logprobs,
    text,
)

FIXED: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": MAX_TOKENS}
COMPOSED: dict[str, Any] = {"extra_body": {"composition": COMPOSITION}}


def client(url: str) -> Any:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def chat(url: str) -> None:
    answer = client(url).chat.completions.create(model="small-chat", **FIXED)
    assert answer.choices[0].message.content == text(url, model="small-chat")


def composition(url: str) -> None:
    answer = client(url).chat.completions.create(model="large", **FIXED, **COMPOSED)
    assert answer.choices[0].message.content == text(url, model="large", composition=COMPOSITION)


def stream(url: str) -> None:
    chunks = client(url).chat.completions.create(model="large-proxy", **FIXED, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == text(url, model="large-proxy")


def log_probs(url: str) -> None:
    answer = client(url).chat.completions.create(model="large", **FIXED, **COMPOSED, logprobs=True)
    ours = [token.logprob for token in answer.choices[0].logprobs.content]
    assert ours == pytest.approx(logprobs(url, model="large", composition=COMPOSITION), abs=1e-3)


def schema(url: str) -> None:
    body = FIXED | {"max_tokens": 100, "model": "large-proxy"}
    answer = client(url).chat.completions.parse(**body, response_format=Birth)
    assert isinstance(answer.choices[0].message.parsed, Birth)


def tools(url: str) -> None:
    body = FIXED | {"max_tokens": 60, "model": "small-chat", "tool_choice": "required", "parallel_tool_calls": False}
    answer = client(url).chat.completions.create(**body, tools=[{"type": "function", "function": TOOL}])
    call = answer.choices[0].message.tool_calls[0].function
    is_look(call.name, json.loads(call.arguments))


def responses(url: str) -> None:
    body: dict[str, Any] = {"model": "large", "input": QUESTION, "temperature": 0, "max_output_tokens": MAX_TOKENS}
    said = text(url, model="large", composition=COMPOSITION)
    api = client(url).responses
    assert api.create(**body, **COMPOSED).output_text == said
    with api.stream(**body, **COMPOSED) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert events[-1].response.output_text == "".join(deltas) == said
    longer = body | {"max_output_tokens": 100}
    assert isinstance(api.parse(**longer, **COMPOSED, text_format=Birth).output_parsed, Birth)
    with api.stream(**longer, **COMPOSED, text_format=Birth) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Birth)


def refusals(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="composition") as refused:
        client(url).chat.completions.create(model="large", **FIXED, extra_body={"compositon": COMPOSITION})
    assert cast(Any, refused.value).param == "compositon"
    with pytest.raises(openai.NotFoundError, match="There is no endpoint"):
        client(url).embeddings.create(model="large", input="a")
