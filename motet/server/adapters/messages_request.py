"""The body of Anthropic's `POST /v1/messages`, and the chat request that it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field

from motet.server.adapters.chat import Turn, as_chat, merged
from motet.server.http.writing import json_text
from motet.server.shapes.requests import (
    INT32,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOPS,
    Body,
    ChatCompletionRequest,
    Name,
    SamplingFields,
    Word,
)

MAX_TOOLS = 128


class TextBlock(Body):
    type: Literal["text"]
    text: str
    """The text."""


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    """What was thought before the next block."""
    signature: str | None = None
    """Not checked."""


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: Name
    """What the tool's result answers to."""
    name: Name
    """The tool that was called."""
    input: dict[str, Any]
    """Its arguments."""


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: Name
    """Which call this answers."""
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    """What the tool returned."""
    is_error: bool | None = None
    """Whether the tool failed; its content says why."""


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Discriminator("type")]
Texts = str | Annotated[list[TextBlock], Field(max_length=MAX_PARTS, fail_fast=True)]
Blocks = str | Annotated[list[Block], Field(max_length=MAX_PARTS, fail_fast=True)]


class MessageTurn(Body):
    role: Literal["user", "assistant", "system"]
    """Who speaks."""
    content: Blocks
    """What is said, as a text or in blocks."""

    def turns(self) -> Iterator[Turn]:
        """Results of tools first: they answer the turn before."""
        blocks = [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        yield from (_result(block) for block in blocks if isinstance(block, ToolResultBlock))
        others = [block for block in blocks if not isinstance(block, ToolResultBlock)]
        if others or not blocks:
            yield self._turn(others)

    def _turn(self, blocks: Sequence[TextBlock | ThinkingBlock | ToolUseBlock]) -> Turn:
        texts = [block.text for block in blocks if isinstance(block, TextBlock)]
        thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
        calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
        turn: Turn = {"role": self.role, "content": "".join(texts) if texts or not calls else None}
        turn |= {"reasoning_content": "".join(thoughts)} if thoughts else {}
        return turn | ({"tool_calls": calls} if calls else {})


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": json_text(block.input)}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock) -> Turn:
    text = _text(block.content or "")
    said = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": said}


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class MessageTool(Body):
    name: Name
    """What calls name it by."""
    description: str | None = None
    """What it does, for the model."""
    input_schema: dict[str, Any]
    """A JSON schema of its arguments."""
    type: Literal["custom"] | None = None
    """Tools of the client's own are the only ones."""
    strict: bool | None = None
    """Kept to either way, where a grammar can hold it."""

    def tool(self) -> dict[str, Any]:
        own = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": "function", "function": {**own, "parameters": self.input_schema}}


class MessageToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    """`auto`: the model decides; `any`: at least one call; `tool`: the named one; `none`: no call."""
    name: Name | None = None
    """The tool that must be called, with `tool`."""
    disable_parallel_tool_use: bool | None = None
    """One call at most."""

    def choice(self) -> str | dict[str, Any]:
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name or ""}}
        return "required" if self.type == "any" else self.type


class Thinking(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    """Whether to think before the answer."""
    budget_tokens: Annotated[int, Field(ge=0, le=INT32)] | None = None
    """Most tokens of the thought."""


class OutputSchema(Body):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """A JSON schema that the answer keeps to."""

    def response_format(self) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": self.schema_}}


class OutputConfig(Body):
    format: OutputSchema | None = None
    """JSON that keeps to a schema."""
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """How much to think before the answer."""


class CountRequest(SamplingFields):
    """What is read of a request to `/v1/messages`."""

    messages: Annotated[list[MessageTurn], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    """The turns, in blocks or as texts."""
    system: Texts | None = None
    """A system message before them."""
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    """Tools that the model may ask its caller to run."""
    tool_choice: MessageToolChoice | None = None
    """Whether one must be called."""
    thinking: Thinking | None = None
    """The thought before the answer."""
    output_config: OutputConfig | None = None
    """What the answer looks like, and how much is thought."""

    def chat(self) -> ChatCompletionRequest:
        """The chat request that this one is.

        Raises:
            ApiError: 400, several answers.
        """
        return as_chat(self, self._changed())

    def _changed(self) -> dict[str, Any]:
        choice, output = self.tool_choice, self.output_config or OutputConfig()
        is_single = choice is not None and choice.disable_parallel_tool_use
        return {
            "messages": merged(self._turns()),
            "tools": [tool.tool() for tool in self.tools or []] or None,
            "tool_choice": choice and choice.choice(),
            "parallel_tool_calls": False if is_single else None,
            "response_format": output.format and output.format.response_format(),
            **self._thought(output),
        }

    def _thought(self, output: OutputConfig) -> dict[str, Any]:
        effort = "xhigh" if output.effort == "max" else output.effort
        if self.thinking is None or self.thinking.type == "adaptive":
            return {"reasoning_effort": effort}
        if self.thinking.type == "disabled":
            return {"reasoning_effort": "none"}
        return {"reasoning_effort": effort, "thinking_token_budget": self.thinking.budget_tokens}

    def _turns(self) -> Iterator[Turn]:
        if self.system:
            yield {"role": "system", "content": _text(self.system)}
        for message in self.messages:
            yield from message.turns()


class MessagesRequest(CountRequest):
    """Anthropic's Messages; and the fields of chat completions beside them."""

    max_tokens: Annotated[int, Field(ge=1, le=INT32)]  # type: ignore[assignment]  (here it has to be given)
    """Most tokens to generate, cut to what the context holds."""
    stop_sequences: Annotated[list[Word], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    """Texts that end the answer; not part of it."""

    def _changed(self) -> dict[str, Any]:
        return super()._changed() | {"max_completion_tokens": self.max_tokens, "stop": self.stop_sequences}
