"""Server-sent events (WHATWG HTML, section 9.2) as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from motet.server.http.writing import json_text

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def encode(value: Any) -> bytes:
    return b"data: " + json_text(value).encode() + b"\n\n"


def encode_event(name: str, value: Any) -> bytes:
    """An event with a name of its own, as other APIs than chat completions send them."""
    return f"event: {name}\n".encode() + encode(value)


class EventStream(StreamingResponse):
    """Closes what is `held` for the answer when it is over, also when the client left in the middle."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)
