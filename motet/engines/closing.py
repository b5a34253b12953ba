"""JSON that is closed in time: behind a number of tokens what is open is closed as soon as the grammar lets it.

Models that have never seen JSON write on in its first string, or number, until their tokens are used up.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from motet.engines.base import Grammar, Matcher, ThoughtPhase

CLOSERS = frozenset('"]}')
DIGITS = frozenset("0123456789")
LETTERS = frozenset(string.ascii_letters) - frozenset("eE")


@dataclass(frozen=True)
class Closers:
    """The tokens that consist of quotes and closing brackets alone, by what they begin with; those that begin with a
    comma, with what a number goes on with, or with letters that no number has; as masks."""

    quotes: int
    brackets: int
    braces: int
    commas: int
    digits: int
    letters: int

    @classmethod
    def of(cls, vocabulary: Iterable[tuple[str, int]], vocab_size: int) -> Closers:
        width = (vocab_size + 7) // 8
        masks = {kind: bytearray(width) for kind in (*CLOSERS, ",", "0", "a")}
        for text, token in vocabulary:
            for kind in _kinds(text) if token < vocab_size else ():
                masks[kind][token // 8] |= 1 << token % 8
        return cls(*(int.from_bytes(masks[kind], "little") for kind in '"]},0a'))

    def among(self, allowed: int) -> int:
        """Those that close something, or else those that end a number. Where a bracket and a brace are allowed at once,
        both are parts of a text."""
        brackets, braces = allowed & self.brackets, allowed & self.braces
        if brackets and braces:
            return allowed & self.quotes
        is_number = allowed & self.digits and not allowed & self.letters
        return allowed & self.quotes | brackets | braces or (allowed & self.commas if is_number else 0)


def _kinds(text: str) -> Iterator[str]:
    """What a token counts as: its first closer, a comma, 0 for digits, a for letters."""
    if text and set(text) <= CLOSERS:
        yield text[0]
    elif text.startswith(","):
        yield ","
    elif text[:1] in DIGITS or text[:1] in LETTERS:
        yield "0" if text[0] in DIGITS else "a"


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
