"""JSON that is closed in time: behind a number of tokens what is open is closed as soon as the grammar lets it.

Models that have never seen JSON write on in its first string until their tokens are used up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from motet.engines.base import Grammar, Matcher, ThoughtPhase

CLOSERS = frozenset('"]}')


@dataclass(frozen=True)
class Closers:
    """The tokens that consist of quotes and closing brackets alone, by what they begin with, as masks."""

    quotes: int
    brackets: int
    braces: int

    @classmethod
    def of(cls, vocabulary: Iterable[tuple[str, int]], vocab_size: int) -> Closers:
        masks = dict.fromkeys(CLOSERS, 0)
        for text, token in vocabulary:
            if token < vocab_size and text and set(text) <= CLOSERS:
                masks[text[0]] |= 1 << token
        return cls(masks['"'], masks["]"], masks["}"])

    def among(self, allowed: int) -> int:
        """Those that close something. Where a bracket and a brace are allowed at once, both are parts of a text."""
        brackets, braces = allowed & self.brackets, allowed & self.braces
        return allowed & self.quotes | (0 if brackets and braces else brackets | braces)


@dataclass(frozen=True)
class ClosingGrammar:
    """`answer`, in which from token `closing` on only what closes may follow, wherever something can be closed. See
    `base.Grammar`.
    """

    answer: Grammar
    closing: int
    closers: Closers

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
        chosen = allowed & self._ends or self._closers.among(allowed)
        return chosen.to_bytes(len(mask), "little") if chosen else mask
