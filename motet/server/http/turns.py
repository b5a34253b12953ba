"""Turns of requests that have much to send: one in each round of the event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

TURN_S = 0.001  # what one request computes in its turn


class Turns:
    """A round of the event loop computes for one of those who wait for their turn, so that what is not about answers
    (a new connection, a refusal, a probe) never waits for more than `TURN_S` a round, however many answers are sent."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def take(self) -> None:
        """Returns when it is the caller's turn, in the order of the calls."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another one has ended, with who waited in it
            self._waiting.clear()
            self._loop = loop
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if len(self._waiting) == 1:
            loop.call_soon(self._give)
        await turn

    def _give(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._give)


class Turn:
    """The turns of one request, one after the other."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._began = -math.inf

    async def go_on(self) -> None:
        """Returns when there may be computed: at once within `TURN_S`, else in the next turn."""
        if time.monotonic() - self._began > TURN_S:
            await self._turns.take()
            self._began = time.monotonic()
