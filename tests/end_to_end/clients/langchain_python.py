"""LangChain's ChatOpenAI."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.end_to_end.clients.asked import (
    COMPOSITION,
    MAX_TOKENS,
    QUESTION,
    TOOL,
    Birth,
    is_look,
    logprobs,
    text,
)


def model(url: str, name: str, max_tokens: int = MAX_TOKENS, **more: Any) -> Any:
    key = SecretStr("none")
    fixed: dict[str, Any] = {"temperature": 0, "max_completion_tokens": max_tokens, "max_retries": 0}
    return ChatOpenAI(base_url=f"{url}/v1", api_key=key, model=name, **fixed, **more)


def composed(url: str, **more: Any) -> Any:
    return model(url, "large", extra_body={"composition": COMPOSITION}, **more)


def chat(url: str) -> None:
    assert model(url, "small-chat").invoke(QUESTION).text == text(url, model="small-chat")


def composition(url: str) -> None:
    assert composed(url).invoke(QUESTION).text == text(url, model="large", composition=COMPOSITION)


def stream(url: str) -> None:
    said = "".join(chunk.text for chunk in model(url, "large-proxy").stream(QUESTION))
    assert said == text(url, model="large-proxy")


def log_probs(url: str) -> None:
    content = composed(url, logprobs=True).invoke(QUESTION).response_metadata["logprobs"]["content"]
    theirs = logprobs(url, model="large", composition=COMPOSITION)
    assert [token["logprob"] for token in content] == pytest.approx(theirs, abs=1e-3)


def schema(url: str) -> None:
    """Its default is OpenAI's `json_schema`."""
    assert isinstance(model(url, "large-proxy", 100).with_structured_output(Birth).invoke(QUESTION), Birth)


def tools(url: str) -> None:
    bound = model(url, "small-chat", 60).bind_tools(
        [{"type": "function", "function": TOOL}], tool_choice="any", parallel_tool_calls=False
    )
    call = bound.invoke(QUESTION).tool_calls[0]
    is_look(call["name"], call["args"])


def responses(url: str) -> None:
    answer = composed(url, use_responses_api=True).invoke(QUESTION)
    assert answer.text == text(url, model="large", composition=COMPOSITION)


def refusals(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="composition"):
        model(url, "large", extra_body={"compositon": COMPOSITION}).invoke(QUESTION)
