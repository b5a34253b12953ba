"""pydantic-ai's Agent over OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent, ModelHTTPError, ModelRequest, ToolDefinition
from pydantic_ai.direct import model_request_sync
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

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


def model(url: str, name: str, of: Any = OpenAIChatModel) -> Any:
    return of(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def agent(asked: Any, answer: Any = str, **more: Any) -> Agent[None, Any]:
    settings: Any = {"temperature": 0, "max_tokens": MAX_TOKENS, **more}
    return Agent(asked, output_type=answer, model_settings=settings)


def composed(asked: Any, **more: Any) -> Agent[None, Any]:
    return agent(asked, extra_body={"composition": COMPOSITION}, **more)


def chat(url: str) -> None:
    assert agent(model(url, "small-chat")).run_sync(QUESTION).output == text(url, model="small-chat")


def composition(url: str) -> None:
    assert composed(model(url, "large")).run_sync(QUESTION).output == text(url, model="large", composition=COMPOSITION)


def stream(url: str) -> None:
    with agent(model(url, "large-proxy")).run_stream_sync(QUESTION) as answer:
        said = list(answer.stream_text(debounce_by=None))
    assert said[-1] == text(url, model="large-proxy")


def log_probs(url: str) -> None:
    details = composed(model(url, "large"), openai_logprobs=True).run_sync(QUESTION).response.provider_details or {}
    theirs = logprobs(url, model="large", composition=COMPOSITION)
    assert [token["logprob"] for token in details["logprobs"]] == pytest.approx(theirs, abs=1e-3)


def schema(url: str) -> None:
    """Its default is a call of a function that takes the class."""
    assert isinstance(agent(model(url, "large-proxy"), Birth, max_tokens=100).run_sync(QUESTION).output, Birth)


def tools(url: str) -> None:
    """One request, whose answer must be a call."""
    look = ToolDefinition(name=TOOL["name"], description=TOOL["description"], parameters_json_schema=TOOL["parameters"])
    answer = model_request_sync(
        model(url, "small-chat"),
        [ModelRequest.user_text_prompt(QUESTION)],
        model_settings={"temperature": 0, "max_tokens": 60, "parallel_tool_calls": False},
        model_request_parameters=ModelRequestParameters(function_tools=[look], allow_text_output=False),
    )
    call = answer.tool_calls[0]
    is_look(call.tool_name, call.args_as_dict())


def responses(url: str) -> None:
    said = composed(model(url, "large", OpenAIResponsesModel)).run_sync(QUESTION).output
    assert said == text(url, model="large", composition=COMPOSITION)


def refusals(url: str) -> None:
    with pytest.raises(ModelHTTPError, match="composition"):
        agent(model(url, "large"), extra_body={"compositon": COMPOSITION}).run_sync(QUESTION)
