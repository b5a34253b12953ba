"""The body of `POST /v1/responses`, and the chat request that it is. Nothing is stored: a request has all its turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag

from motet.composers.errors import show
from motet.server.adapters.chat import Turn, as_chat, merged
from motet.server.http.errors import invalid
from motet.server.shapes.requests import (
    INT32,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOP_LOGPROBS,
    Body,
    ChatCompletionRequest,
    Name,
    SamplingFields,
)
from motet.server.structured import JsonObjectFormat, NamedSchema, TextFormat
from motet.settings import nearest

LOGPROBS = "message.output_text.logprobs"
SERVED = (LOGPROBS, "reasoning.encrypted_content")  # of `include`; thoughts are given whole, and taken back so


class InputPart(Body):
    type: Literal["input_text", "output_text", "text"]
    """What kind of part: text alone is read."""
    text: str
    """The text; parts are joined without anything between them."""


class SummaryPart(Body):
    type: Literal["summary_text", "reasoning_text"]
    """What kind of part."""
    text: str
    """A part of the thought."""


Parts = str | Annotated[list[InputPart], Field(max_length=MAX_PARTS, fail_fast=True)]
Thoughts = Annotated[list[SummaryPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: Parts
    """What is said, as a text or in parts."""

    def turn(self) -> Turn:
        return {"role": self.role, "content": _text(self.content)}


class CallItem(Body):
    type: Literal["function_call"]
    call_id: Name
    """What the call's output answers to."""
    name: Name
    """The function that was called."""
    arguments: str
    """Its arguments, as JSON."""

    def turn(self) -> Turn:
        function = {"name": self.name, "arguments": self.arguments}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class OutputItem(Body):
    type: Literal["function_call_output"]
    call_id: Name
    """Which call this answers."""
    output: Parts
    """What the function returned."""

    def turn(self) -> Turn:
        return {"role": "tool", "tool_call_id": self.call_id, "content": _text(self.output)}


class ReasoningItem(Body):
    type: Literal["reasoning"]
    summary: Thoughts | None = None
    """The thought in short; read where there is no `content`."""
    content: Thoughts | None = None
    """What was thought before the next item."""

    def turn(self) -> Turn:
        thought = "".join(part.text for part in self.content or self.summary or [])
        return {"role": "assistant", "content": None, "reasoning_content": thought}


def _kind(item: Any) -> str | None:
    """A message need not say that it is one."""
    return cast("dict[str, Any]", item).get("type", "message") if isinstance(item, dict) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind),
]


class SchemaFormat(NamedSchema):
    type: Literal["json_schema"]

    def named(self) -> dict[str, Any]:
        return {"type": self.type, "json_schema": self.model_dump(exclude={"type"}, exclude_none=True)}


class TextOptions(Body):
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    """What the answer looks like: free text, any JSON object, or JSON that keeps to a schema."""

    def response_format(self) -> dict[str, Any] | None:
        match self.format:
            case None:
                return None
            case SchemaFormat() as schema:
                return schema.named()
            case other:
                return other.model_dump()


class ResponseTool(Body):
    type: Literal["function"]
    """Functions are the only tools."""
    name: Name
    """What calls name it by."""
    description: str | None = None
    """What it does, for the model."""
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None
    """Kept to either way, where a grammar can hold it."""

    def tool(self) -> dict[str, Any]:
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


class NamedTool(Body):
    type: Literal["function"]
    name: Name
    """The function that must be called."""


class ReasoningOptions(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    """How much to think before the answer."""
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Thoughts are given whole."""


class ResponsesRequest(SamplingFields):
    """OpenAI's Responses, stateless; and the fields of chat completions beside them."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    """The user's text, or the turns: messages, calls of functions with their outputs, thoughts."""
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: Annotated[int, Field(ge=1, le=INT32)] | None = None
    """Most tokens to generate, cut to what the context holds."""
    text: TextOptions | None = None
    """What the answer looks like."""
    tools: Annotated[list[ResponseTool], Field(max_length=128, fail_fast=True)] | None = None
    """Functions that the model may ask its caller to run."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    """`none`, `auto` (the default), `required`, or one function by its name."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may call several functions."""
    reasoning: ReasoningOptions | None = None
    """How much to think before the answer."""
    include: Annotated[list[Name], Field(max_length=32, fail_fast=True)] | None = None
    """`message.output_text.logprobs` reports log-probs. Thoughts are given whole, without
    `reasoning.encrypted_content`."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Alternatives per token of the log-probs."""
    store: bool | None = None
    """Nothing is stored."""

    def chat(self) -> ChatCompletionRequest:
        """The chat request that this one is.

        Raises:
            ApiError: 400, several answers, or what this server cannot report.
        """
        self._check_include()
        return as_chat(self, self._changed())

    def _check_include(self) -> None:
        for place, value in enumerate(self.include or []):
            if value not in SERVED:
                field = f"include.{place}"
                said = f"{field}: {show(value)} is not reported here.{nearest(value, SERVED)}"
                raise invalid(said, field, "unsupported_parameter")

    def _changed(self) -> dict[str, Any]:
        choice = self.tool_choice
        named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice
        wants_logprobs = LOGPROBS in (self.include or []) or bool(self.top_logprobs)
        return {
            "messages": merged(self._turns()),
            "response_format": self.text and self.text.response_format(),
            "tools": [tool.tool() for tool in self.tools or []] or None,
            "tool_choice": named,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning and self.reasoning.effort,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": wants_logprobs or None,
            "top_logprobs": self.top_logprobs,
        }

    def _turns(self) -> Iterator[Turn]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}
        if isinstance(self.input, str):
            yield {"role": "user", "content": self.input}
        else:
            yield from (item.turn() for item in self.input)


def _text(content: str | Sequence[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
