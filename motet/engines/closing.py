"""JSON that is closed in time: behind a number of tokens what is open is closed as soon as the grammar lets it.

Models that have never seen JSON write on in its first string until their tokens are used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from motet.engines.base import Grammar, Matcher, ThoughtPhase


@dataclass(frozen=True)
class ClosingGrammar:
    """`answer`, in which from token `closing` on only what closes may follow, wherever something can be closed. See
    `base.Grammar`.

    Args:
        closers: a mask of the tokens that consist of quotes and closing brackets.
    """

    answer: Grammar
    closing: int
    closers: int

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def thought(self) -> ThoughtPhase | None:
        return self.answer.thought

    def start(self, ends: Sequence[int]) -> ClosingMatcher:
        return ClosingMatcher(self, self.answer.start(ends), sum(1 << token for token in set(ends)))


class ClosingMatcher:
    """See `base.Matcher`."""

    def __init__(self, grammar: ClosingGrammar, answer: Matcher, ends: int) -> None:
        self._closing = grammar.closing
        self._closers = grammar.closers
        self._answer = answer
        self._ends = ends

    def allowed(self, generated: Sequence[int]) -> bytes | bytearray | memoryview:
        mask = self._answer.allowed(generated)
        if len(generated) < self._closing:
            return mask
        allowed = int.from_bytes(mask, "little")
        if allowed.bit_count() > len(mask) * 4 and allowed & self._ends:  # half of all tokens, and the end: free text
            return mask
        chosen = allowed & self._ends or allowed & self._closers
        return chosen.to_bytes(len(mask), "little") if chosen else mask
