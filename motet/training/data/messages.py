"""Chat messages as rows hold them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from motet.models.chat_template import text_parts
from motet.settings import nearest
from motet.training.data.errors import RowError, listing
from motet.training.data.json_text import is_list, is_object, parse

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}
TEXT_FIELDS = ("name", "reasoning_content", "tool_call_id")
FIELDS = (*TEXT_FIELDS, "tool_calls")  # what a template may read of a message beside its role and content
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Message(NamedTuple):
    """One turn.

    `weight` is the loss weight of an answer's tokens (OpenAI's and Mistral's 0 and 1, and any other number ≥ 0); an
    answer of weight 0 is history. `fields`: those of `FIELDS` that the row has.
    """

    role: str
    content: str
    weight: float = 1.0
    fields: Mapping[str, Any] = NOTHING

    @property
    def is_answer(self) -> bool:
        """Whether its tokens count."""
        return self.role == "assistant" and self.weight > 0


Messages = tuple[Message, ...]
Tools = tuple[Mapping[str, Any], ...]


def as_chat(messages: Sequence[Message], in_parts: Callable[[str], bool] = lambda _: False) -> list[dict[str, Any]]:
    """The form that chat templates read, contents of the roles `in_parts` as lists of parts; as in serving,
    `developer` is another word for `system`."""
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    return [
        {
            "role": role,
            "content": text_parts(message.content) if in_parts(role) else message.content,
            **message.fields,
        }
        for role, message in zip(roles, messages, strict=True)
    ]


def parse_messages(value: object, column: str) -> Messages:
    """Messages with `role` and `content`. Raises RowError, naming the column and the message (counted from 1)."""
    return tuple(_message(item, f"{column}[{number}]") for number, item in enumerate(_items(value, column), 1))


def parse_sharegpt(value: object, column: str) -> Messages:
    """Messages with `from` and `value`. Raises RowError."""
    return tuple(_sharegpt(item, f"{column}[{number}]") for number, item in enumerate(_items(value, column), 1))


def parse_tools(value: object) -> Tools:
    """The tools that a row offers: a list of JSON schemas, or its text. Raises RowError."""
    if isinstance(value, str):
        value = _json_of(value, "tools")
    if value is None or value == []:
        return ()
    if not is_list(value) or not all(is_object(tool) for tool in value):
        raise RowError(f"tools: expected a list of objects, got {type(value).__name__}")
    return tuple(value)


def _items(value: object, column: str) -> list[Any]:
    if not is_list(value):
        raise RowError(f"{column}: expected a list of messages, got {type(value).__name__}")
    if not value:
        raise RowError(f"{column}: no messages")
    return value


def _message(item: object, place: str) -> Message:
    values = _values(item, place, ("role", "content"), FIELDS)
    role = _text(values, "role", place)
    if role not in ROLES:
        raise RowError(f"{place}: unknown role {role!r}; allowed: {listing(ROLES)}.{nearest(role, ROLES)}")
    fields: dict[str, Any] = {name: _text(values, name, place) for name in TEXT_FIELDS if name in values}
    if "tool_calls" in values:
        fields["tool_calls"] = _tool_calls(values["tool_calls"], f"{place}.tool_calls")
    content = "" if "content" not in values and "tool_calls" in fields else _content(values, "content", place)
    return Message(role, _filled(role, content, fields, place), _weight(values, role, place), fields)


def _sharegpt(item: object, place: str) -> Message:
    values = _values(item, place, ("from", "value"), ())
    speaker = _text(values, "from", place)
    if speaker not in SHAREGPT_ROLES:
        known = list(SHAREGPT_ROLES)
        raise RowError(f"{place}: unknown speaker {speaker!r}; allowed: {listing(known)}.{nearest(speaker, known)}")
    role = SHAREGPT_ROLES[speaker]
    return Message(role, _filled(role, _content(values, "value", place), {}, place), _weight(values, role, place))


def _values(item: object, place: str, needed: tuple[str, str], others: tuple[str, ...]) -> dict[str, Any]:
    """What a message says; a field that is not known is refused by name."""
    if not is_object(item):
        raise RowError(f"{place}: expected an object with {needed[0]} and {needed[1]}, got {type(item).__name__}")
    values = {name: value for name, value in item.items() if value is not None}
    known = (*needed, "weight", *others)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise RowError(
            f"{place}: {listing(unknown)} not supported; allowed: {listing(known)}.{nearest(unknown[0], known)}"
        )
    return values


def _text(values: Mapping[str, Any], name: str, place: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise RowError(f"{place}.{name}: expected text, got {type(value).__name__}")
    return value


def _content(values: Mapping[str, Any], name: str, place: str) -> str:
    """A text, or OpenAI's list of parts, texts all of them."""
    parts = values.get(name)
    if not is_list(parts):
        return _text(values, name, place)
    texts = [part.get("text") if is_object(part) and part.get("type") == "text" else None for part in parts]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise RowError(
                f"{place}.{name}[{number}]: only parts of the type text are read, got {parts[number - 1]!r:.60}"
            )
    return "".join(map(str, texts))


def _filled(role: str, content: str, fields: Mapping[str, Any], place: str) -> str:
    if role == "assistant" and not content.strip() and "tool_calls" not in fields:
        raise RowError(f"{place}: the answer is empty")
    return content


def _weight(values: Mapping[str, Any], role: str, place: str) -> float:
    if "weight" not in values:
        return 1.0
    weight = values["weight"]
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise RowError(f"{place}.weight: {weight!r} is no weight; allowed: 0 (masked), 1, or another number >= 0")
    if role != "assistant" and weight:
        raise RowError(
            f"{place}.weight: {weight!r} on a message of the {role}; only the assistant's answers are learnt"
        )
    return float(weight) if role == "assistant" else 1.0


def _tool_calls(value: object, place: str) -> list[dict[str, Any]]:
    """OpenAI's calls, their arguments as objects: templates write those as JSON, and a text would be quoted twice."""
    if not is_list(value) or not value:
        raise RowError(f"{place}: expected a list of calls, got {value!r:.60}")
    return [_tool_call(call, f"{place}[{number}]") for number, call in enumerate(value, 1)]


def _tool_call(call: object, place: str) -> dict[str, Any]:
    function = call.get("function", call) if is_object(call) else None
    if not is_object(call) or not is_object(function) or not isinstance(function.get("name"), str):
        raise RowError(f"{place}: expected an object with function: {{name, arguments}}, got {call!r:.60}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json_of(arguments, f"{place}.arguments")
    called: dict[str, Any] = {**function, "arguments": arguments or {}}
    return {**call, "function": called} if "function" in call else called


def _json_of(text: str, place: str) -> object:
    try:
        return parse(text.encode())
    except RowError as error:
        raise RowError(f"{place}: {error}") from error
