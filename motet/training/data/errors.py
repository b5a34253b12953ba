"""What is wrong with data, all of it in one error."""

from __future__ import annotations

from collections.abc import Iterable

from motet.settings import SettingsError


class DataError(SettingsError):
    """A dataset is refused. `problems` has one line for each fault, `file:line: what` where a row is at fault."""


class RowError(ValueError):
    """One row is refused; the message does not name its place, the reader adds that."""


def listing(names: Iterable[object]) -> str:
    """`a, b, c`, or `none`."""
    return ", ".join(str(name) for name in names) or "none"
