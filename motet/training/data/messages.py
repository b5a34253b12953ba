"""Chat messages as rows hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from motet.training.data.errors import RowError, listing, nearest
from motet.training.data.files import is_list, is_object

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


class Message(NamedTuple):
    """One turn."""

    role: str
    content: str


Messages = tuple[Message, ...]


def as_chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The form that chat templates read."""
    return [{"role": message.role, "content": message.content} for message in messages]


def parse_messages(value: object, column: str) -> Messages:
    """Messages with `role` and `content`. Raises RowError, naming the column and the message (counted from 1)."""
    return tuple(_message(item, f"{column}[{number}]") for number, item in enumerate(_items(value, column), 1))


def parse_sharegpt(value: object, column: str) -> Messages:
    """Messages with `from` and `value`. Raises RowError."""
    return tuple(_sharegpt(item, f"{column}[{number}]") for number, item in enumerate(_items(value, column), 1))


def _items(value: object, column: str) -> list[Any]:
    if not is_list(value):
        raise RowError(f"{column}: expected a list of messages, got {type(value).__name__}")
    if not value:
        raise RowError(f"{column}: no messages")
    return value


def _message(item: object, place: str) -> Message:
    fields = _fields(item, place, ("role", "content"))
    role = fields["role"]
    if role not in ROLES:
        raise RowError(f"{place}: unknown role {role!r}; allowed: {listing(ROLES)}{nearest(role, ROLES)}")
    return Message(role, _content(role, fields["content"], place))


def _sharegpt(item: object, place: str) -> Message:
    fields = _fields(item, place, ("from", "value"))
    speaker = fields["from"]
    if speaker not in SHAREGPT_ROLES:
        known = list(SHAREGPT_ROLES)
        raise RowError(f"{place}: unknown speaker {speaker!r}; allowed: {listing(known)}{nearest(speaker, known)}")
    role = SHAREGPT_ROLES[speaker]
    return Message(role, _content(role, fields["value"], place))


def _fields(item: object, place: str, names: tuple[str, str]) -> dict[str, str]:
    """The two named texts of a message; every other field that says something is refused by name."""
    if not is_object(item):
        raise RowError(f"{place}: expected an object with {names[0]} and {names[1]}, got {type(item).__name__}")
    others = [name for name, value in item.items() if name not in names and value is not None]
    if others:
        raise RowError(f"{place}: {listing(others)} not supported; allowed: {names[0]}, {names[1]}")
    for name in names:
        if not isinstance(item.get(name), str):
            raise RowError(f"{place}.{name}: expected text, got {type(item.get(name)).__name__}")
    return {name: item[name] for name in names}


def _content(role: str, content: str, place: str) -> str:
    if role == "assistant" and not content.strip():
        raise RowError(f"{place}: the answer is empty")
    return content
