"""Server-sent events (WHATWG HTML, section 9.2) as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from motet.server.http.writing import LISTS, json_pieces, json_text

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
PIECE = 1 << 14  # characters of a long event that are written together


def encode(value: Any) -> bytes:
    return b"data: " + json_text(value).encode() + b"\n\n"


def encode_event(name: str, value: Any) -> bytes:
    """An event with a name of its own, as other APIs than chat completions send them."""
    return f"event: {name}\n".encode() + encode(value)


def event_pieces(value: Any, name: str | None = None, lists: int = LISTS) -> Iterator[bytes]:
    """A long event, never all of it in one call. `lists` as in `json_pieces`."""
    written = [] if name is None else [f"event: {name}\n"]
    written.append("data: ")
    size = 0
    for piece in json_pieces(value, lists):
        written.append(piece)
        size += len(piece)
        if size > PIECE:
            yield "".join(written).encode()
            written.clear()
            size = 0
    written.append("\n\n")
    yield "".join(written).encode()


class EventStream(StreamingResponse):
    """Closes what is `held` for the answer when it is over, also when the client left in the middle."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)
