"""How an answer's body and chunks are written. By default they are chat completions' and completions' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

from motet.server.http.errors import ApiError, error_body
from motet.server.http.sse import DONE, encode, event_pieces
from motet.server.http.writing import ITEMS

Json = dict[str, Any]


def objects(value: Any) -> list[Json]:
    """A list that may be missing."""
    return cast("list[Json]", value or [])


def fields(value: Any) -> Json:
    """An object that may be missing."""
    return cast(Json, value or {})


class EventWriter(Protocol):
    """Writes the events of one stream, the long ones in pieces."""

    def write(self, chunk: Json) -> Iterator[bytes]:
        """The events that a chunk of a chat completion comes to."""
        ...

    def fail(self, error: ApiError) -> Iterator[bytes]:
        """The event of an error in mid-stream."""
        ...

    def end(self) -> Iterator[bytes]:
        """What stands behind the last event, after an error too."""
        ...


class Adapter(Protocol):
    def whole(self, body: Json) -> Json:
        """The body of an answer, from that of a chat completion."""
        ...

    def events(self) -> EventWriter: ...


class Chunks:
    """OpenAI's chunks as they are."""

    def write(self, chunk: Json) -> Iterator[bytes]:
        if any(map(_is_long, chunk["choices"])):
            yield from event_pieces(chunk)
        else:
            yield encode(chunk)

    def fail(self, error: ApiError) -> Iterator[bytes]:
        yield encode(error_body(error.status_code, error.detail, error.param, error.code))

    def end(self) -> Iterator[bytes]:
        yield DONE


def _is_long(choice: Json) -> bool:
    """Whether it tells of many tokens: an echoed prompt's come in one chunk."""
    tokens = fields(choice.get("logprobs")).get("tokens") or fields(choice.get("motet")).get("trace") or ()
    return len(tokens) > ITEMS
