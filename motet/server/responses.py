"""The answers' shapes, for the OpenAPI description; the tests hold real answers against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class Shape(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetail(Shape):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    error: ErrorDetail


class CachedTokens(Shape):
    cached_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class StreamUse(Shape):
    role: str
    model: str
    weight: float
    prompt_tokens: int


class Composed(Shape):
    """What was composed: `weight_sum` acts as an inverse temperature, `kv_bytes` is the memory reserved."""

    strategy: str
    weight_sum: float
    kv_bytes: int
    streams: list[StreamUse]


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class ChatCompletion(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    motet: Composed


class TextChoice(Shape):
    index: int
    text: str
    logprobs: dict[str, JsonValue] | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None


class Completion(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    motet: Composed


class Score(Shape):
    """`members`: each stream's own log-probability of the whole continuation, by role."""

    index: int
    logprob: float
    is_greedy: bool
    tokens: list[str]
    token_ids: list[int]
    token_logprobs: list[float]
    members: dict[str, float]


class Scores(Shape):
    object: Literal["list"]
    model: str
    data: list[Score]
    usage: Usage
    motet: Composed


class Compared(Shape):
    label: str
    model: str
    choices: list[ChatChoice] | list[TextChoice]
    usage: Usage
    motet: Composed


class Comparison(Shape):
    id: str
    object: Literal["comparison"]
    created: int
    candidates: list[Compared]


class Event(Shape):
    """With `stream`: each event's data is a chunk as JSON, the last is `[DONE]`."""

    data: str


class ModelCard(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    composition: dict[str, Any] | None
    expert: dict[str, Any] | None  # role, strategy, weight, weight_range and partner of a model's expert.json


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Shape):
    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Detokenized(Shape):
    prompt: str


class Status(Shape):
    status: str


class Version(Shape):
    version: str


Responses = dict[int | str, dict[str, Any]]


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorBody} for status in statuses}


UNAUTHORIZED = _errors(401)
NOT_FOUND = _errors(404)
UNAVAILABLE = _errors(503)
INVALID = _errors(400, 401, 404, 413)
ANSWERS = _errors(400, 401, 404, 413, 429, 500, 503)
EVENTS = {"schema": Event.model_json_schema()}
STREAMED: Responses = {**ANSWERS, 200: {"content": {"text/event-stream": EVENTS}}}
