"""LiteLLM, through its provider `hosted_vllm`."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else importing it asks another machine for prices
import litellm
from litellm.exceptions import BadRequestError

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

COMPOSED: dict[str, Any] = {"extra_body": {"composition": COMPOSITION}}


def ask(url: str, model: str, **more: Any) -> Any:
    fixed: dict[str, Any] = {"temperature": 0, "max_tokens": MAX_TOKENS, "num_retries": 0, "messages": MESSAGES}
    api: dict[str, Any] = {"model": f"hosted_vllm/{model}", "api_base": f"{url}/v1", "api_key": "none"}
    return litellm.completion(**api, **fixed | more)


def chat(url: str) -> None:
    assert ask(url, "small-chat").choices[0].message.content == text(url, model="small-chat")


def composition(url: str) -> None:
    said = ask(url, "large", **COMPOSED).choices[0].message.content
    assert said == text(url, model="large", composition=COMPOSITION)


def stream(url: str) -> None:
    chunks = ask(url, "large-proxy", stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == text(url, model="large-proxy")


def log_probs(url: str) -> None:
    content = ask(url, "large", logprobs=True, **COMPOSED).choices[0].logprobs["content"]
    theirs = logprobs(url, model="large", composition=COMPOSITION)
    assert [token["logprob"] for token in content] == pytest.approx(theirs, abs=1e-3)


def schema(url: str) -> None:
    answer = ask(url, "large-proxy", response_format=Birth, max_tokens=100)
    Birth.model_validate_json(answer.choices[0].message.content)


def tools(url: str) -> None:
    offered = [{"type": "function", "function": TOOL}]
    more: dict[str, Any] = {"max_tokens": 60, "tool_choice": "required", "parallel_tool_calls": False}
    call = ask(url, "small-chat", tools=offered, **more).choices[0].message.tool_calls[0].function
    is_look(call.name, json.loads(call.arguments))


def responses(url: str) -> None:
    api: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "none", "temperature": 0}
    answer: Any = litellm.responses(model="openai/large-proxy", input=QUESTION, max_output_tokens=MAX_TOKENS, **api)
    assert answer.output[0].content[0].text == text(url, model="large-proxy")


def refusals(url: str) -> None:
    with pytest.raises(BadRequestError, match="composition"):
        ask(url, "large", extra_body={"compositon": COMPOSITION})
