"""What is wrong with data, all of it in one error."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches


class DataError(Exception):
    """A dataset is refused. `problems` has one line for each fault, `file:line: what` where a row is at fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class RowError(ValueError):
    """One row is refused; the message does not name its place, the reader adds that."""


def listing(names: Iterable[object]) -> str:
    """`a, b, c`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"


def nearest(name: str, known: Collection[str]) -> str:
    """`; nearest: x`, or nothing where no known name is close."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; nearest: {close[0]}" if close else ""
