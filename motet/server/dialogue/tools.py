"""What a request says of tools: those it offers, which of them must be called, and the calls of its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from motet.engines.grammar_limits import MAX_CHARACTERS
from motet.server.http.errors import invalid
from motet.server.structured import Schema
from motet.settings import nearest

MAX_TOOLS = 128  # OpenAI's
MAX_CALLS = 128  # of one turn
MAX_ID = 256
JOINED = ("$ref", "anyOf", "oneOf", "allOf")
SAYS_MORE = (*JOINED, "additionalProperties", "patternProperties", "unevaluatedProperties")  # of other properties

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}$")]
CallId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class Described(BaseModel):
    """Strict about types. Templates see what is not known here."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)


class Function(Described):
    """A function that the model may ask its caller to run."""

    name: FunctionName
    """What calls name it by."""
    description: str | None = None
    """What it does, for the model."""
    parameters: Schema | None = None
    """A JSON schema of its arguments; left out, there are none."""
    strict: bool | None = None
    """Whether a schema that no grammar can hold is refused; else such a one is a request to the model. All others are
    kept to either way."""

    @property
    def schema_of_arguments(self) -> Schema:
        """An object, and where its properties are listed no others: nobody's function takes what it does not name."""
        schema = self.parameters or {"properties": {}}
        if "type" not in schema and not any(word in schema for word in JOINED):
            schema = {"type": "object", **schema}
        is_closed = "properties" in schema and not any(word in schema for word in SAYS_MORE)
        return {**schema, "additionalProperties": False} if is_closed else schema


class Tool(Described):
    type: Literal["function"]
    """Functions are the only tools."""
    function: Function
    """The function."""

    def as_read(self) -> dict[str, Any]:
        """What templates show: `strict` is no business of the model's."""
        function = self.function.model_dump(exclude={"strict"}, exclude_none=True)
        function.setdefault("parameters", {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


class FunctionChoice(Described):
    name: FunctionName
    """The function that must be called."""


class ToolChoice(Described):
    """One function that must be called."""

    type: Literal["function"]
    function: FunctionChoice
    """Which one."""


class FunctionCall(Described):
    name: FunctionName
    """The function that was called."""
    arguments: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    """Its arguments, as JSON."""


class ToolCall(Described):
    """A call of an earlier turn."""

    id: CallId
    """What the tool's message answers to."""
    type: Literal["function"] = "function"
    function: FunctionCall
    """Which function, with which arguments."""

    def turn(self) -> dict[str, Any]:
        """What templates read."""
        return {"id": self.id, "type": self.type, "function": self.function.model_dump(include={"name", "arguments"})}


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_CALLS, fail_fast=True)]
Choice = Literal["none", "auto", "required"] | ToolChoice


@dataclass(frozen=True)
class Offer:
    """The functions that the model reads of, and those of them that it may call: at least one where it `must`, and one
    at most unless it may call several."""

    tools: tuple[Tool, ...] = ()
    callable: tuple[Tool, ...] = ()
    must: bool = False
    several: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.callable)

    @property
    def loose(self) -> frozenset[str]:
        """Functions that may get arguments which no grammar has held: none where an answer must call."""
        return frozenset(tool.function.name for tool in self.callable if not (self.must or tool.function.strict))


def offered(tools: Sequence[Tool] | None, choice: Choice | None, parallel: bool | None) -> Offer:
    """
    Raises:
        ApiError: 400, a choice without tools, a function that is not offered, two of one name.
    """
    given = tuple(tools or ())
    names = [tool.function.name for tool in given]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise invalid(f"tools: two functions have the name {doubled!r}.", "tools")
    if not given and choice not in (None, "none", "auto"):
        raise invalid("'tool_choice' asks for a call, but 'tools' offers no function.", "tool_choice")
    if choice == "none":
        return Offer()
    if not isinstance(choice, ToolChoice):
        return Offer(given, given, choice == "required", parallel is not False)
    named = tuple(tool for tool in given if tool.function.name == choice.function.name)
    if not named:
        asked = f"tool_choice.function.name: no function {choice.function.name!r} among 'tools'."
        raise invalid(f"{asked}{nearest(choice.function.name, names)}", "tool_choice.function.name")
    return Offer(given, named, must=True, several=False)
