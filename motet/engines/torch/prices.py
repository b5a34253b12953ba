"""What a member's forward costs by the number of its tokens, learnt from the forwards that it does anyway."""

from __future__ import annotations

import statistics
from bisect import bisect_left, insort
from collections import deque
from math import inf

EXACT = 32  # so many tokens and fewer have a price of their own; more share one with their neighbours
REMEMBERED = 5  # the last times of a price: their median keeps up with the machine, and one slow forward moves nothing
MORE = (
    0.03  # one token more, where nothing larger was measured: reading the weights is nearly all that a few tokens cost
)


class Prices:
    """Seconds of one forward over n tokens.

    What is not done any more keeps the price of a bad moment: single tokens, where guesses are always verified with
    them. No forward costs more than a longer one, so that newer prices of longer ones bound it.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._sizes: list[int] = []  # measured, ascending
        self._measured: dict[int, float] = {}  # the medians of the times
        self._turn: dict[int, int] = {}  # when each was measured last, counted in measurements
        self._turns = 0
        self._known: dict[int, float] = {}  # what `of` has answered since the last measurement

    def observe(self, tokens: int, seconds: float) -> None:
        size = _size(tokens)
        if size not in self._times:
            self._times[size] = deque(maxlen=REMEMBERED)
            insort(self._sizes, size)
        self._times[size].append(seconds)
        self._measured[size] = statistics.median_low(self._times[size])
        self._turns += 1
        self._turn[size] = self._turns
        self._known.clear()

    def of(self, tokens: int) -> float:
        """Seconds of a forward over `tokens`; 0 as long as nothing was measured."""
        if tokens <= 0 or not self._sizes:
            return 0.0
        size = _size(tokens)
        if size not in self._known:
            place = bisect_left(self._sizes, size)
            below, above = self._sizes[max(place - 1, 0)], self._sizes[min(place, len(self._sizes) - 1)]
            self._known[size] = self._between(below, size, above)
        return self._known[size]

    def _between(self, below: int, size: int, above: int) -> float:
        if above == size or above <= below:
            # below all that was measured it costs no less by much; above all, it is tried to find out
            return self._bounded(above) * (1 + MORE * max(0, size - above))
        share = (size - below) / (above - below)
        return self._bounded(below) * (1 - share) + self._bounded(above) * share

    def _bounded(self, size: int) -> float:
        """What was measured, at most the newer prices of longer forwards."""
        longer = self._sizes[bisect_left(self._sizes, size) + 1 :]
        newer = (self._measured[other] for other in longer if self._turn[other] > self._turn[size])
        return min(self._measured[size], min(newer, default=inf))


def _size(tokens: int) -> int:
    """The number that stands for `tokens`: above `EXACT`, the next multiple of an eighth of its power of two."""
    if tokens <= EXACT:
        return tokens
    grain = 1 << (tokens.bit_length() - 4)
    return -(-tokens // grain) * grain
