"""How an answer's body and chunks are written. By default they are chat completions' and completions' own."""

from __future__ import annotations

from typing import Any, Protocol, cast

from motet.server.http.errors import ApiError, error_body
from motet.server.http.sse import DONE, encode

Json = dict[str, Any]


def objects(value: Any) -> list[Json]:
    """A list that may be missing."""
    return cast("list[Json]", value or [])


def fields(value: Any) -> Json:
    """An object that may be missing."""
    return cast(Json, value or {})


class EventWriter(Protocol):
    """Writes the events of one stream."""

    def write(self, chunk: Json) -> bytes:
        """The events that a chunk of a chat completion comes to."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """The event of an error in mid-stream."""
        ...

    def end(self) -> bytes:
        """What stands behind the last event, after an error too."""
        ...


class Adapter(Protocol):
    def whole(self, body: Json) -> Json:
        """The body of an answer, from that of a chat completion."""
        ...

    def events(self) -> EventWriter: ...


class Chunks:
    """OpenAI's chunks as they are."""

    def write(self, chunk: Json) -> bytes:
        return encode(chunk)

    def fail(self, error: ApiError) -> bytes:
        return encode(error_body(error.status_code, error.detail, error.param, error.code))

    def end(self) -> bytes:
        return DONE


class AsIs:
    """Chat completions, completions and comparisons."""

    def whole(self, body: Json) -> Json:
        return body

    def events(self) -> EventWriter:
        return Chunks()


AS_IS = AsIs()
