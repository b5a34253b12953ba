"""How much the server takes on: bytes of a body, and choices in flight."""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motet.server.errors import ApiError, busy, error_response, invalid


class BodyLimit:
    """Refuses bodies of more than `max_bytes` with 413: by their declared length, else while they are read."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:19]) > self.max_bytes:
            await error_response(self._refusal())(scope, receive, send)
            return
        await self.app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise self._refusal()
            return message

        return limited

    def _refusal(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self.max_bytes} bytes.", code="body_too_large")


class Place:
    """Reserved choices; released once, however the request ends."""

    def __init__(self, admission: Admission, choices: int, key: str | None) -> None:
        self._admission = admission
        self._choices = choices
        self._key = key

    def release(self) -> None:
        self._admission.give_back(self._choices, self._key)
        self._choices = 0


class Admission:
    """Counts choices from before their prompt is tokenized until their answer is over.

    Reserving is one step of the event loop, so that two requests never take the same place.
    """

    def __init__(self, max_choices: int, max_choices_per_key: int | None = None) -> None:
        self.max_choices = max_choices
        self.max_choices_per_key = max_choices_per_key
        self.draining = False
        self.idle = asyncio.Event()  # set while nothing is in flight
        self.idle.set()
        self._taken = 0
        self._by_key: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._taken

    def reserve(self, choices: int, key: str | None = None) -> Place:
        """
        Raises:
            ApiError: 503 with Retry-After while the server drains or is full, 429 where the key has its share, 400
                for more choices than can ever be taken.
        """
        if self.draining:
            raise busy(503, "The server is shutting down.", "shutting_down")
        limit = min(self.max_choices, self.max_choices_per_key or self.max_choices)
        if choices > limit:
            raise invalid(f"The request asks for {choices} choices, at most {limit} are allowed at once.", "n")
        if self._taken + choices > self.max_choices:
            raise busy(503, f"All {self.max_choices} places are taken; try again.", "queue_full")
        if key and self.max_choices_per_key and self._by_key[key] + choices > self.max_choices_per_key:
            raise busy(429, f"This key has {self.max_choices_per_key} places, all taken; try again.", "quota_exceeded")
        self.idle.clear()
        self._taken += choices
        self._by_key[key or ""] += choices
        return Place(self, choices, key)

    def give_back(self, choices: int, key: str | None) -> None:
        self._taken -= choices
        if not self._taken:
            self.idle.set()
        self._by_key[key or ""] -= choices
        if not self._by_key[key or ""]:
            del self._by_key[key or ""]
