"""An answer's JSON. Large ones are put together and written in pieces: one may have 60 MB, and others are served in
between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from anyio import CapacityLimiter, to_thread

from motet.server.http.turns import Turn, Turns

T = TypeVar("T")
P = ParamSpec("P")
MANY_TOKENS = 256  # with all their log-probs a few milliseconds
ITEMS = 64  # of a list, which are written in one call that nothing interrupts
CHARACTERS = 1 << 16  # of a text, likewise
LISTS = 2  # that lie in each other and are written item by item: choices, and what each choice lists
WRITERS = CapacityLimiter(2)


async def beside_others(turns: Turns, tokens: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work` on so many tokens, in a turn of its own; on many in a thread, where others' turns come every
    few milliseconds."""
    if tokens > MANY_TOKENS:
        return await to_thread.run_sync(lambda: work(*args, **kwargs), limiter=WRITERS)
    await turns.take()
    return work(*args, **kwargs)


async def encoded(body: dict[str, Any], turns: Turns) -> bytes:
    """A body's JSON."""
    turn, pieces = Turn(turns), list[str]()
    for piece in json_pieces(body):
        pieces.append(piece)
        await turn.go_on()
    return "".join(pieces).encode()


def json_text(value: Any) -> str:
    """Raises ValueError: a number that is none, which JSON does not have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def json_pieces(value: Any, lists: int = LISTS) -> Iterator[str]:
    """The JSON of a value in pieces: objects field by field, the outer `lists` item by item, lists in these in
    lengths of `ITEMS`, texts in lengths of `CHARACTERS`."""
    match value:
        case str() if len(value) > CHARACTERS:
            yield from _text(value)
        case dict():
            yield from _object(cast("dict[str, Any]", value), lists)
        case [dict(), *_] if lists:
            yield from _list(cast("list[Any]", value), lists)
        case list() if len(items := cast("list[Any]", value)) > ITEMS:
            for begin in range(0, len(items), ITEMS):
                yield ("," if begin else "[") + json_text(items[begin : begin + ITEMS])[1:-1]
            yield "]"
        case _:
            yield json_text(value)


def _object(fields: dict[str, Any], lists: int) -> Iterator[str]:
    opening = "{"
    for name, value in fields.items():
        yield f"{opening}{json_text(name)}:"
        yield from json_pieces(value, lists)
        opening = ","
    yield "}" if fields else "{}"


def _text(text: str) -> Iterator[str]:
    yield '"'
    for begin in range(0, len(text), CHARACTERS):
        yield json_text(text[begin : begin + CHARACTERS])[1:-1]
    yield '"'


def _list(items: list[Any], lists: int) -> Iterator[str]:
    opening = "["
    for item in items:
        yield opening
        yield from json_pieces(item, lists - 1)
        opening = ","
    yield "]"
