"""What an answer must look like → the tokens that may come next, by llguidance (imported when a request first asks).

A grammar is one text in llguidance's Lark, so that it can travel to other processes and mean the same there.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from motet.engines.base import GrammarFailed

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from motet.models.tokenizer import Tokenizer

REMEMBERED = 32  # compiled grammars per tokenizer
# Where the next bytes are certain, llguidance would allow only the token that the tokenizer writes them with by itself:
# a wrong one where the tokenizer puts a space before every text. A mask means all tokens that can be completed.
NOT_FORCED = '\n%llguidance {"no_forcing": true}\n'
EXCERPT = re.compile(r"^\s*\d+ \| ", re.MULTILINE)
MAX_REASON = 500  # characters of the library's reason


class GrammarError(ValueError):
    """A grammar that cannot be compiled, or that no token of the vocabulary can begin; the message is the reason."""


class Grammars:
    """Compiles grammars for one tokenizer. Threads may share it; the tokenizer is read when the first one is asked.

    Args:
        tokenizer: whose tokens spell the answer.
        vocab_size: width V of the masks.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def compile(self, text: str) -> CompiledGrammar:
        """Raises GrammarError."""
        with self._lock:
            found = self._compiled.pop(text, None) or self._new(text)
            self._compiled[text] = found
            if len(self._compiled) > REMEMBERED:
                self._compiled.popitem(last=False)
        return found

    def _new(self, text: str) -> CompiledGrammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._environment, text + NOT_FORCED, log_level=0, limits=_limits())
        if reason := matcher.get_error():
            raise GrammarError(_shown(reason))
        grammar = CompiledGrammar(text, matcher, self._vocab_size, self._environment.eos_token)
        try:
            grammar.start(()).allowed(())
        except GrammarFailed as failure:  # what breaks at the first token breaks here
            raise GrammarError(str(failure)) from failure
        return grammar

    @cached_property
    def _environment(self) -> LLTokenizer:
        """Ends are ours to allow: llguidance knows one, which stands for them all and is never fed to it."""
        from llguidance.hf import from_tokenizer

        hf = cast(Any, self._tokenizer.hf)
        specials = sorted(self._tokenizer.special_ids)
        end = hf.eos_token_id if hf.eos_token_id is not None else specials[0] if specials else self._vocab_size - 1
        size = max(self._vocab_size, 1 + max(self._tokenizer.backend.get_vocab().values(), default=0))
        try:
            return from_tokenizer(hf, n_vocab=size, eos_token=end)
        except ValueError as error:
            raise GrammarError(f"the model's tokenizer cannot be read by grammars: {_shown(str(error))}") from error


class CompiledGrammar:
    """See `base.Grammar`."""

    def __init__(self, text: str, matcher: LLMatcher, vocab_size: int, end: int) -> None:
        self.text = text
        self._matcher = matcher  # never advanced: threads may copy it
        self._vocab_size = vocab_size
        self._end = end  # what llguidance takes for the end

    def start(self, ends: Sequence[int]) -> GrammarMatcher:
        return GrammarMatcher(self._matcher, ends, self._end, self._vocab_size)


class GrammarMatcher:
    """See `base.Matcher`. It follows one answer, and goes back where the answer was taken back."""

    def __init__(self, fresh: LLMatcher, ends: Sequence[int], end: int, vocab_size: int) -> None:
        self._fresh = fresh
        self._matcher = fresh.deep_copy()
        self._num_bytes = (vocab_size + 31) // 32 * 4
        self._ends = frozenset(token for token in ends if token < vocab_size)
        self._no_text = {*self._ends, *({end} if end < vocab_size else ()), *range(vocab_size, self._num_bytes * 8)}
        self._taken: list[int] = []

    def allowed(self, generated: Sequence[int]) -> bytearray:
        known = _common(self._taken, generated)
        new = list(generated[known:])
        text = new[: next((i for i, token in enumerate(new) if token in self._ends), len(new))]
        self._go_back(known)
        count = self._matcher.try_consume_tokens(text)
        self._taken += text[:count]
        if count < len(text):  # a draft that will not be taken
            mask = bytearray(self._num_bytes)
        else:
            mask = self._mask() if len(text) == len(new) else self._ends_only()
        self._check()
        return mask

    def _go_back(self, known: int) -> None:
        count = len(self._taken) - known
        del self._taken[known:]
        if count and not self._matcher.rollback(count):  # limits inside of a grammar cannot be rolled back
            self._matcher = self._fresh.deep_copy()
            self._matcher.try_consume_tokens(self._taken)

    def _mask(self) -> bytearray:
        """Ends exactly where the grammar may end, whatever else it takes them for."""
        mask = bytearray(self._matcher.compute_bitmask()[: self._num_bytes])
        may_end = self._matcher.is_accepting()
        for token in self._no_text:
            bit = 1 << token % 8
            is_allowed = may_end and token in self._ends
            mask[token // 8] = mask[token // 8] | bit if is_allowed else mask[token // 8] & ~bit
        return mask

    def _ends_only(self) -> bytearray:
        """Behind an end that did not end the answer (the request ignores ends)."""
        mask = bytearray(self._num_bytes)
        for token in self._ends:
            mask[token // 8] |= 1 << token % 8
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _shown(self._matcher.get_error())
            if reason.startswith("NoExtensionBias"):
                reason = "no token of the vocabulary can come next"
            raise GrammarFailed(f"the grammar cannot be followed behind token {len(self._taken)}: {reason}")


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if list(right[: len(left)]) == left:
        return len(left)
    pairs = zip(left, right, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _limits() -> LLParserLimits:
    """The library's own bounds of work and memory; its longer messages would show the parser's insides."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


def _shown(reason: str) -> str:
    """Without the excerpt of the grammar that may follow."""
    return " ".join(EXCERPT.split(reason)[0].split())[:MAX_REASON]
