"""Stop strings over text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back what could be the beginning of a stop string. The stop that ends first wins, of those that end
    together the longest, so that the answer does not depend on how the text was cut into pieces."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that may be shown, the stop string that matched or None)."""
        if not self._stops:
            return text, None
        self._held += text
        if (match := self._match()) is not None:
            start, end = match
            shown, stop = self._held[: end if self._include else start], self._held[start:end]
            self._held = ""
            return shown, stop
        return self._release(len(self._held) - self._possible()), None

    def flush(self) -> str:
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _match(self) -> tuple[int, int] | None:
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        return (min(found)[1], min(found)[0]) if found else None

    def _possible(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        ends = (size for size in range(longest, 0, -1) if self._starts_a_stop(self._held[-size:]))
        return next(ends, 0)

    def _starts_a_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)
