"""How fast places become free: what a client that found none is told to wait."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0


class FreedPlaces:
    """Counts what was freed within the last minute, in steps of a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._freed: deque[tuple[float, int]] = deque()  # (second, places), oldest first

    def freed(self, places: int) -> None:
        second = math.floor(self._clock())
        if self._freed and self._freed[-1][0] == second:
            places += self._freed.pop()[1]
        self._freed.append((second, places))
        self._forget()

    def wait(self, places: int) -> int:
        """Whole seconds, 1 to 60, in which so many places become free at the speed of the last minute; where none did,
        as long again as it has lasted."""
        self._forget()
        span = min(WINDOW_S, self._clock() - self._began)
        seconds = places * span / max(1, sum(count for _, count in self._freed))
        return math.ceil(min(max(seconds, 1.0), WINDOW_S))

    def _forget(self) -> None:
        while self._freed and self._freed[0][0] < self._clock() - WINDOW_S:
            self._freed.popleft()
