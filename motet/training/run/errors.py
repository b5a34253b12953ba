"""How runs fail: with everything that is wrong, in words for the user."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches


class RunError(Exception):
    """A run cannot start or go on. `problems`: everything that is wrong, one line each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def nearest(value: str, names: Collection[str]) -> str:
    """`; nearest: NAME` where a name is near to `value`, else what is allowed, else nothing."""
    near = get_close_matches(value, sorted(names), n=1)
    if near:
        return f"; nearest: {near[0]}"
    return f"; allowed: {', '.join(sorted(names))}" if names else ""
