"""The answers' shapes, for the OpenAPI description; the tests hold real answers against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class Shape(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class ErrorDetail(Shape):
    message: str
    """What is wrong, with the value and what is allowed."""
    type: str
    """The kind of error, as OpenAI names it."""
    param: str | None
    """Dotted path of the request's field that is wrong."""
    code: str | None
    """A fixed name of the error, for programs."""


class ErrorBody(Shape):
    error: ErrorDetail
    """What is wrong."""


class CachedTokens(Shape):
    cached_tokens: int
    """Tokens of the prompt that were still in memory from earlier requests."""


class CompletionDetails(Shape):
    reasoning_tokens: int
    """Tokens of the thoughts before the answers."""


class Usage(Shape):
    prompt_tokens: int
    """Tokens of the prompts that were sent."""
    completion_tokens: int
    """Tokens of all answers."""
    total_tokens: int
    """The sum of both."""
    prompt_tokens_details: CachedTokens
    """How the prompt was read."""
    completion_tokens_details: CompletionDetails | None = None
    """What the answers' tokens are, where members write thoughts."""


class StreamUse(Shape):
    role: str
    """The model's part in the composition."""
    model: str
    """The model that ran."""
    weight: float
    """The factor of its log-probs."""
    prompt_tokens: int
    """Tokens that it read."""


class GateDecision(Shape):
    """What a gate said of one prompt."""

    gate: str
    """Its name."""
    score: float
    """The probability of the labels that count; of a prompt that was read in windows, the greatest."""
    threshold: float
    """From where on the composition answers."""
    applied: bool
    """Whether the composition answered."""


class KeyToken(Shape):
    """A token that was read once more."""

    token: str
    """Its text."""
    token_id: int
    """Its id."""
    position: int
    """Its place in what was scored, counted from 0."""
    logprob: float
    """How likely the model found it there."""


class PonderedPrompt(Shape):
    """What the engine scored of one prompt before it answered, to read its least likely tokens once more."""

    model: str
    """The model that scored it."""
    scored_tokens: int
    """How many tokens it has; they are not part of the usage."""
    num_tokens: int
    """How many of them were read once more."""
    tokens: list[KeyToken] | None = None
    """Which, in the order of the prompt, where a trace was asked for."""


class JudgedAnswer(Shape):
    """Who gave one answer, where whole answers are judged."""

    index: int
    """Which of the answers."""
    role: str
    """`small`, or `base` where it answered anew."""
    model: str
    """The model of that role."""
    discarded_tokens: int
    """Tokens that the small model wrote and that are no part of the answer, nor of the usage."""
    confidence: float | None = None
    """How sure the small model was of what it wrote, as `measure` and `aggregate` have it: of all of it, or up to the
    token that decided."""
    threshold: float | None = None
    """From where on an answer is sure; with `entropy` up to where."""


class RoutedTokens(Shape):
    """How many tokens one of two models wrote."""

    role: str
    """`base` or `assistant`."""
    model: str
    """The model of that role."""
    tokens: int
    """Tokens of all answers that it wrote."""


class Composed(Shape):
    """What was composed, and what it took."""

    strategy: str
    """The strategy of the composition; `plain` where one model answered alone, `gated` where a gate has sent
    prompts of one request to both sides."""
    drawn_by_member: bool | None = None
    """True where each token was drawn from one member of a mixture, the member drawn by its share."""
    weight_sum: float | None
    """The sum of the weights; acts as an inverse temperature. Null where prompts were composed in unlike ways."""
    kv_bytes: int
    """Memory for keys and values that was reserved."""
    streams: list[StreamUse]
    """Every model with what it read, the base first."""
    gates: list[GateDecision] | None = None
    """What the gate said of each prompt, where the model is a gated composition."""
    pondered: list[PonderedPrompt] | None = None
    """What was read once more of each prompt, under strategy `hesitation`."""
    cascade: list[JudgedAnswer] | None = None
    """Who gave each answer, under strategy `cascade` per request."""
    routed: list[RoutedTokens] | None = None
    """Who wrote how many tokens, under strategy `routed` with a threshold."""


class CalledFunction(Shape):
    name: str
    """The function's name."""
    arguments: str
    """Its arguments as JSON, as the model wrote it."""


class CalledTool(Shape):
    id: str
    """What a message of role `tool` answers to."""
    type: Literal["function"]
    function: CalledFunction
    """Which function, with which arguments."""


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    """The answer; null where it is calls alone."""
    refusal: None
    """Always null."""
    reasoning_content: str | None = None
    """What was thought before the answer, by members that write thoughts."""
    tool_calls: list[CalledTool] | None = None
    """The functions that the caller is asked to run."""


class ChatChoice(Shape):
    index: int
    """Which of the answers."""
    message: ChatMessage
    """The answer."""
    logprobs: dict[str, JsonValue] | None
    """Log-probs of the tokens under the composition, where asked for."""
    finish_reason: Literal["stop", "length", "tool_calls"]
    """`stop`: the answer ended itself or at a stop text; `tool_calls`: so, and calls functions; `length`: at its
    limit."""
    stop_reason: str | int | None
    """The stop text or token id that ended the answer."""


class ChatCompletion(Shape):
    id: str
    """The answer's own name."""
    object: Literal["chat.completion"]
    created: int
    """When, in seconds since 1970."""
    model: str
    """What was asked: a model or a named composition."""
    choices: list[ChatChoice]
    """The answers."""
    usage: Usage
    """Tokens read and written."""
    motet: Composed
    """What was composed."""


class TextChoice(Shape):
    index: int
    """Which of the answers."""
    text: str
    """The answer; with `echo` behind its prompt."""
    logprobs: dict[str, JsonValue] | None
    """Log-probs of the tokens under the composition, where asked for."""
    finish_reason: Literal["stop", "length"]
    """`stop`: the answer ended itself or at a stop text; `length`: at its limit."""
    stop_reason: str | int | None
    """The stop text or token id that ended the answer."""


class Completion(Shape):
    id: str
    """The answer's own name."""
    object: Literal["text_completion"]
    created: int
    """When, in seconds since 1970."""
    model: str
    """What was asked: a model or a named composition."""
    choices: list[TextChoice]
    """The answers."""
    usage: Usage
    """Tokens read and written."""
    motet: Composed
    """What was composed."""


class Score(Shape):
    """One continuation under the composition."""

    index: int
    """Which of the continuations."""
    logprob: float
    """Log-probability of the whole continuation under the composition."""
    is_greedy: bool
    """Whether every token is the most likely one."""
    tokens: list[str]
    """Texts of the continuation's tokens."""
    token_ids: list[int]
    """Ids of the continuation's tokens."""
    token_logprobs: list[float]
    """Log-probability of each token."""
    members: dict[str, float]
    """Each member's own log-probability of the whole continuation, by role."""


class Scores(Shape):
    object: Literal["list"]
    model: str
    """What was asked: a model or a named composition."""
    data: list[Score]
    """The continuations, in the order of the request."""
    usage: Usage
    """Tokens read."""
    motet: Composed
    """What was composed."""


class Compared(Shape):
    label: str
    """The candidate's label."""
    model: str
    """The candidate's model."""
    choices: list[ChatChoice] | list[TextChoice]
    """Its answers, as chat completions or completions have them."""
    usage: Usage
    """Tokens that it read and wrote."""
    motet: Composed
    """What was composed."""


class Comparison(Shape):
    id: str
    """The answer's own name."""
    object: Literal["comparison"]
    created: int
    """When, in seconds since 1970."""
    candidates: list[Compared]
    """The answers, in the order of the request."""


class Event(Shape):
    """One event of a stream."""

    data: str
    """A chunk as JSON, or `[DONE]`."""


class TokenMapCard(Shape):
    exact: bool
    """Whether the member has all tokens of the base, under whatever ids; else it is composed approximately."""
    shared: int
    """How many of the base's tokens it has."""
    tokens: int
    """How many the base has."""


class ModelCard(Shape):
    id: str
    """What a request's `model` may say."""
    object: Literal["model"]
    created: int
    """When the server started, in seconds since 1970."""
    owned_by: str
    """Always `motet`."""
    root: str
    """Where the model was loaded from; a composition's own name."""
    parent: str | None
    """A composition's base; of an adapter or a soft prompt that is computed by another model, that one."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    composition: dict[str, Any] | None
    """A named composition, as a request would write it."""
    expert: dict[str, Any] | None
    """Role, strategy, weight, weight range and partner that a trained expert's expert.json recommends."""
    token_maps: dict[str, TokenMapCard] | None
    """Of a composition, by name: members that have other tokens than the base, and how they are mapped."""


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelCard]
    """Models and named compositions."""


class Tokenized(Shape):
    tokens: list[int]
    """Token ids."""
    count: int
    """How many."""
    max_model_len: int
    """Most tokens that the model reads and writes together."""
    token_strs: list[str] | None = None
    """The tokens as the vocabulary spells them, where asked for."""


class Detokenized(Shape):
    prompt: str
    """The text."""


class Upkept(Shape):
    object: Literal["upkeep"]
    models: list[str]
    """Models that are loaded."""
    compositions: list[str]
    """Named compositions."""
    policies: list[str]
    """Names of the policies."""
    loaded: list[str]
    """Models that came."""
    unloaded: list[str]
    """Models that go, once no running answer needs them."""
    needs_restart: list[str]
    """Settings that have changed in the file and that only a start reads."""


class Status(Shape):
    status: str
    """`ok` or `ready`."""


class Version(Shape):
    version: str
    """Motet's version."""


Responses = dict[int | str, dict[str, Any]]


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorBody} for status in statuses}


UNAUTHORIZED = _errors(401)
NOT_FOUND = _errors(404)
UNAVAILABLE = _errors(503)
INVALID = _errors(400, 401, 404, 408, 413)
ANSWERS = _errors(400, 401, 404, 408, 413, 429, 500, 503)
EVENTS = {"schema": Event.model_json_schema()}
STREAMED: Responses = {**ANSWERS, 200: {"content": {"text/event-stream": EVENTS}}}
