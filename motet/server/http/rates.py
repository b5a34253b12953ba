"""How much each key may take per minute."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable


class Rates:
    """A leaky bucket for each key: `limit` units at once, of which `limit` a minute run out again; None: no limit.

    A bucket may be overfilled by what is only known afterwards (the tokens of an answer); the key waits then until that
    has run out.
    """

    def __init__(self, limit: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._filled: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, clock()))  # level, when

    def wait(self, key: str) -> int:
        """Whole seconds until the key may take something; 0: now."""
        if self.limit is None:
            return 0
        beyond = self._level(key) + 1 - self.limit
        return max(0, math.ceil(beyond * 60 / self.limit))

    def spend(self, key: str, units: float) -> None:
        if self.limit is not None:
            self._filled[key] = (self._level(key) + units, self._clock())

    def _level(self, key: str) -> float:
        assert self.limit is not None
        level, when = self._filled[key]
        return max(0.0, level - (self._clock() - when) * self.limit / 60)
