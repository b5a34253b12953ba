"""The chat request that a request of another API is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from motet.server.http.errors import invalid
from motet.server.shapes.requests import ChatCompletionRequest, SamplingFields

Turn = dict[str, Any]  # a message of a chat request
ONE_ANSWER = ("prompt_logprobs", "return_token_ids")  # which chat completions report beside the answer


def as_chat(body: SamplingFields, changed: Turn) -> ChatCompletionRequest:
    """A chat request with the sampling fields of `body` and what its own fields come to.

    Raises:
        ApiError: 400, what only chat completions report.
        RequestValidationError: a turn that no chat has.
    """
    lost = next((name for name in ONE_ANSWER if getattr(body, name)), "n" if (body.n or 1) > 1 else None)
    if lost is not None:
        raise invalid(f"{lost!r} is not supported here: use /v1/chat/completions.", lost, "unsupported_parameter")
    fields = {name: getattr(body, name) for name in SamplingFields.model_fields if name in body.model_fields_set}
    fields |= {name: value for name, value in changed.items() if value is not None}
    fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems, body=fields) from error


def merged(turns: Iterable[Turn]) -> list[Turn]:
    """Thought, text and calls of one answer, which other APIs list one by one, as one message."""
    messages: list[Turn] = []
    thoughts: list[list[str]] = []  # of each message, joined at the end: there may be thousands of them
    for turn in turns:
        last = messages[-1] if messages else {}
        if turn["role"] == last.get("role") == "assistant" and not _begins_anew(last, turn):
            _add(last, turn)
        else:
            messages.append(dict(turn))
            thoughts.append([])
        if "reasoning_content" in turn:
            thoughts[-1].append(turn["reasoning_content"])
    for message, thought in zip(messages, thoughts, strict=True):
        if thought:
            message["reasoning_content"] = "".join(thought)
    return messages


def _begins_anew(last: Turn, turn: Turn) -> bool:
    """A text behind a text, or anything but a call behind a call, belongs to another answer."""
    has_text = last["content"] is not None and turn["content"] is not None
    return has_text or ("tool_calls" in last and "tool_calls" not in turn)


def _add(message: Turn, turn: Turn) -> None:
    message["content"] = turn["content"] if message["content"] is None else message["content"]
    if "tool_calls" in turn:
        message.setdefault("tool_calls", []).extend(turn["tool_calls"])
