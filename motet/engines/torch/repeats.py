"""Guesses from the text itself: what followed the last time that it went like this (prompt lookup decoding)."""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (4, 3, 2)  # of what must be repeated, the longest first


class Repeats:
    """Where the runs of a growing text stand."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}  # run → index of the token behind it
        self._known = 0

    def guess(self, text: Sequence[int], most: int) -> tuple[list[int], int]:
        """Up to `most` tokens that followed the longest run at the text's end where it stood before, and the run's
        length; none and 0 where it is new. The text is that of the last call or a continuation of it."""
        for end in range(max(self._known, LENGTHS[-1]), len(text)):
            for length in LENGTHS:
                if length <= end:
                    self._places[tuple(text[end - length : end])] = end
        self._known = max(self._known, len(text))
        for length in LENGTHS:
            place = self._places.get(tuple(text[-length:])) if len(text) > length else None
            if place is not None:
                return list(text[place : place + most]), length
        return [], 0
