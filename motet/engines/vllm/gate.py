"""Room for linked requests: together they must fit, else members could wait for each other's memory for ever."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Gate:
    """First come, first served, up to `tokens` of KV cache and `rows` of the batch.

    Other requests may take memory too, but they end by themselves; linked ones end only together.
    """

    def __init__(self, tokens: int, rows: int) -> None:
        self.tokens, self.rows = tokens, rows
        self._free = (tokens, rows)
        self._waiting: deque[tuple[tuple[int, int], asyncio.Future[None]]] = deque()

    def fits(self, tokens: int, rows: int) -> bool:
        """Whether so much can ever be had."""
        return tokens <= self.tokens and rows <= self.rows

    @asynccontextmanager
    async def room(self, tokens: int, rows: int) -> AsyncGenerator[None]:
        """Waits until there is room, and holds it."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((tokens, rows), entered))
        self._admit()
        try:
            await entered
            yield
        finally:
            self._leave((tokens, rows), entered)

    def _admit(self) -> None:
        while self._waiting:
            (tokens, rows), entered = self._waiting[0]
            if tokens > self._free[0] or rows > self._free[1]:
                return
            self._waiting.popleft()
            if not entered.done():
                self._free = (self._free[0] - tokens, self._free[1] - rows)
                entered.set_result(None)

    def _leave(self, held: tuple[int, int], entered: asyncio.Future[None]) -> None:
        if entered.done() and not entered.cancelled():
            self._free = (self._free[0] + held[0], self._free[1] + held[1])
        else:
            entered.cancel()
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not entered)
        self._admit()
