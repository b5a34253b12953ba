"""A thought before an answer, as engines see it: where it ends, how long it may become, and that the answer's grammar
begins behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from motet.engines.base import Grammar, Matcher, ThoughtPhase


@dataclass(frozen=True)
class ThoughtGrammar:
    """A thought, then an answer under `answer` (None: any). Behind the budget only the end of the thought is possible,
    and within the thought no end of the answer, so that an answer follows. See `base.Grammar`.

    Args:
        text_of: a token's text, in which the tag is looked for: models spell it in more ways than one.
    """

    thought: ThoughtPhase
    answer: Grammar | None
    text_of: Callable[[int], str]
    vocab_size: int
    closing: int | None = None

    @property
    def text(self) -> str:
        """Of the answer's own grammar; empty where it has none."""
        return "" if self.answer is None else self.answer.text

    def start(self, ends: Sequence[int]) -> ThoughtMatcher:
        return ThoughtMatcher(self, ends)


class ThoughtMatcher:
    """See `base.Matcher`."""

    def __init__(self, grammar: ThoughtGrammar, ends: Sequence[int]) -> None:
        self._phase = grammar.thought
        self._text_of = grammar.text_of
        self._vocab_size = grammar.vocab_size
        self._answer: Matcher | None = None if grammar.answer is None else grammar.answer.start(ends)
        self._ends = [token for token in ends if token < grammar.vocab_size]
        self._all = _every(grammar.vocab_size)
        self._read: list[int] = []  # of the thought
        self._tail = ""
        self._behind: int | None = None  # where the answer begins

    def allowed(self, generated: Sequence[int]) -> bytes | bytearray | memoryview:
        begin = self._phase.begin
        common = min(len(begin), len(generated))
        if list(generated[:common]) != list(begin[:common]):
            return self._of_answer(generated)
        if len(generated) < len(begin):
            return self._entering(generated)
        thought = generated[len(begin) :]
        self._follow(thought)
        if self._behind is not None:
            return self._of_answer(thought[self._behind :])
        if self._phase.budget is None or len(thought) < self._phase.budget:
            return _without(self._all, self._ends)
        closing = thought[self._phase.budget :]
        if len(closing) < len(self._phase.end):
            return _only(self._phase.end[len(closing)], self._vocab_size)
        return self._of_answer(closing[len(self._phase.end) :])  # its tokens read otherwise where they stand

    def _entering(self, generated: Sequence[int]) -> bytearray:
        """The answer may begin with a thought, unless none is wanted."""
        token = self._phase.begin[len(generated)]
        mask = bytearray(self._of_answer(generated))
        if self._phase.budget != 0:
            mask[token // 8] |= 1 << token % 8
        elif len(generated) == len(self._phase.begin) - 1:
            mask[token // 8] &= ~(1 << token % 8)
        return mask

    def _of_answer(self, answer: Sequence[int]) -> bytes | bytearray | memoryview:
        return self._all if self._answer is None else self._answer.allowed(answer)

    def _follow(self, thought: Sequence[int]) -> None:
        """Looks for the tag in the tokens that are new."""
        if list(thought[: len(self._read)]) != self._read:  # a draft was taken back
            self._read, self._tail, self._behind = [], "", None
        for token in thought[len(self._read) :]:
            self._read.append(token)
            if self._behind is not None:
                continue
            self._tail = self._tail[-len(self._phase.tag) :] + self._text_of(token)
            if self._phase.tag in self._tail:
                self._behind = len(self._read)


def _every(vocab_size: int) -> bytearray:
    """Every token of V, in whole words of 32 bits."""
    mask = bytearray(b"\xff" * ((vocab_size + 31) // 32 * 4))
    return _without(mask, range(vocab_size, len(mask) * 8))


def _without(mask: bytearray, tokens: Sequence[int]) -> bytearray:
    mask = bytearray(mask)
    for token in tokens:
        mask[token // 8] &= ~(1 << token % 8)
    return mask


def _only(token: int, vocab_size: int) -> bytearray:
    mask = bytearray((vocab_size + 31) // 32 * 4)
    mask[token // 8] = 1 << token % 8
    return mask
