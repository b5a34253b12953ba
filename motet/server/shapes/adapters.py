"""The shapes of answers to `/v1/responses` and `/v1/messages`, for the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from motet.server.shapes.answers import EVENTS, Composed, Responses, Shape


class ResponseUsage(Shape):
    input_tokens: int
    """Tokens of the prompt that was sent."""
    output_tokens: int
    """Tokens of the answer, its thought included."""
    total_tokens: int
    """The sum of both."""
    input_tokens_details: dict[str, int]
    """`cached_tokens`: those that were still in memory."""
    output_tokens_details: dict[str, int]
    """`reasoning_tokens`: those of the thought."""


class ResponseObject(Shape):
    id: str
    """The answer's own name; nothing is stored under it."""
    object: Literal["response"]
    created_at: int
    """When, in seconds since 1970."""
    status: Literal["completed", "incomplete", "failed"]
    """`incomplete`: the answer ended at its limit."""
    model: str
    """What was asked: a model or a named composition."""
    output: list[dict[str, Any]]
    """Items of type `reasoning`, `message` and `function_call`, in order."""
    usage: ResponseUsage
    """Tokens read and written."""
    motet: Composed
    """What was composed."""


class MessageUsage(Shape):
    input_tokens: int
    """Tokens of the prompt that were read anew."""
    cache_read_input_tokens: int
    """Tokens of the prompt that were still in memory."""
    cache_creation_input_tokens: int
    """Always 0: what is remembered costs nothing."""
    output_tokens: int
    """Tokens of the answer, its thought included."""


class MessageObject(Shape):
    id: str
    """The answer's own name."""
    type: Literal["message"]
    role: Literal["assistant"]
    """Who speaks."""
    model: str
    """What was asked: a model or a named composition."""
    content: list[dict[str, Any]]
    """Blocks of type `thinking`, `text` and `tool_use`, in order."""
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    """Why the answer ended."""
    stop_sequence: str | None
    """The text of `stop_sequences` that ended it."""
    usage: MessageUsage
    """Tokens read and written."""
    motet: Composed
    """What was composed."""


class CountedTokens(Shape):
    input_tokens: int
    """Tokens of the prompt."""


class MessagesErrorDetail(Shape):
    type: str
    """The kind of error, as Anthropic names it."""
    message: str
    """What is wrong, with the value and what is allowed."""


class MessagesErrorBody(Shape):
    type: Literal["error"]
    error: MessagesErrorDetail
    """What is wrong."""


MESSAGE_ERRORS: Responses = {
    status: {"model": MessagesErrorBody} for status in (400, 401, 404, 408, 413, 429, 500, 503)
}
MESSAGE_STREAMED: Responses = {**MESSAGE_ERRORS, 200: {"content": {"text/event-stream": EVENTS}}}
