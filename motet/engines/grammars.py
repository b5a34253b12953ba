"""What an answer must look like → the tokens that may come next, by llguidance (imported when a request first asks).

A grammar is one text in llguidance's Lark, so that it can travel to other processes and mean the same there. Whatever
clients write compiles in a process of its own first (`grammar_process`).
"""

from __future__ import annotations

import asyncio
import atexit
import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from motet.engines.base import Grammar, GrammarFailed, ThoughtPhase
from motet.engines.closing import Closers, ClosingGrammar
from motet.engines.grammar_limits import GrammarError, check_size
from motet.engines.grammar_process import PROCESSES, CompileProcesses, GrammarUnavailable, TokenizerText
from motet.engines.guidance import failure_of, matcher_of, shown
from motet.engines.thought import ThoughtGrammar
from motet.heap import heap_bytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from motet.models.tokenizer import Tokenizer

REMEMBERED = 32  # compiled grammars per tokenizer,
REMEMBERED_BYTES = 64 << 20  # and what they hold together
WAIT_SECONDS = 30.0  # for a grammar's turn and its compilation
STACK_BYTES = 16 << 20  # four times what the grammar had where it was checked
NUMBERS = itertools.count()


class CompileRoom:
    """The threads and processes of all tokenizers in which grammars compile, one in each."""

    def __init__(self) -> None:
        self.processes = CompileProcesses()
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="grammars")
        atexit.register(self.processes.stop)

    def submit(self, work: Callable[[], CompiledGrammar]) -> Future[CompiledGrammar]:
        """One that is cancelled before its turn is never begun."""
        usual = threading.stack_size(STACK_BYTES)  # of threads that start now
        try:
            return self._threads.submit(work)
        finally:
            threading.stack_size(usual)


ROOM = CompileRoom()


class GrammarMemory:
    """What was compiled for one text of a tokenizer and one width of masks, for every model that has these. Threads may
    share it; nothing compiles under its lock."""

    def __init__(self, environment: LLTokenizer) -> None:
        self.environment = environment
        self.number = next(NUMBERS)  # by which processes know the tokenizer
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def get(self, text: str) -> CompiledGrammar | None:
        with self._lock:
            if text in self._compiled:
                self._compiled.move_to_end(text)
            return self._compiled.get(text)

    def keep(self, text: str, grammar: CompiledGrammar) -> None:
        """The oldest go when there are too many, or too large ones together."""
        if grammar.num_bytes > REMEMBERED_BYTES:
            return
        with self._lock:
            self._compiled[text] = grammar
            while len(self._compiled) > REMEMBERED or self.num_bytes > REMEMBERED_BYTES:
                self._compiled.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        return sum(grammar.num_bytes for grammar in self._compiled.values())


_MEMORIES: WeakValueDictionary[tuple[str, int, int, int], GrammarMemory] = WeakValueDictionary()
_MEMORIES_LOCK = threading.Lock()


def _memory_of(tokenizer: TokenizerText, vocab_size: int) -> GrammarMemory:
    """
    Raises:
        GrammarError: grammars cannot read the tokenizer.
    """
    from llguidance import LLTokenizer

    digest = hashlib.sha256(tokenizer.text.encode()).hexdigest()
    key = (digest, tokenizer.size, tokenizer.end, vocab_size)
    with _MEMORIES_LOCK:
        if found := _MEMORIES.get(key):
            return found
        try:
            environment = LLTokenizer(tokenizer.text, n_vocab=tokenizer.size, eos_token=tokenizer.end)
        except ValueError as error:
            raise GrammarError(f"the model's tokenizer cannot be read by grammars: {shown(str(error))}") from error
        _MEMORIES[key] = made = GrammarMemory(environment)
        return made


class Grammars:
    """Compiles grammars for one tokenizer. Threads may share it; the tokenizer is read when the first one is asked, and
    what compiles then is there for other models with the same tokenizer, too.

    Args:
        tokenizer: whose tokens spell the answer.
        vocab_size: width V of the masks.
        is_checked: what is asked has compiled elsewhere; it compiles in the thread that asks.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, is_checked: bool = False) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._is_checked = is_checked
        self._memory: GrammarMemory | None = None  # until the tokenizer is read

    def compile(self, text: str) -> CompiledGrammar:
        """The grammar of a text in Lark, or in llama.cpp's GBNF.

        Raises:
            GrammarError: it cannot be compiled, or is beyond a limit: the message says which.
            GrammarUnavailable: the process that compiles it does not start.
        """
        if self._is_checked:
            return self._compile_here(text)
        return self._remembered(text) or self._begin(text).result()

    def after_thought(self, thought: ThoughtPhase, answer: Grammar | None) -> ThoughtGrammar:
        """A thought before an answer under a grammar (None: any) in this tokenizer's tokens."""
        return ThoughtGrammar(thought, answer, self._tokenizer.text_of, self._vocab_size)

    def closing(self, answer: Grammar, tokens: int) -> ClosingGrammar:
        """An answer whose open JSON is closed behind so many tokens."""
        return ClosingGrammar(answer, tokens, self._closers)

    @cached_property
    def _closers(self) -> Closers:
        return Closers.of(self._tokenizer.backend.get_vocab().items(), self._vocab_size)

    async def compiled(self, text: str, seconds: float = WAIT_SECONDS) -> CompiledGrammar:
        """`compile` for an event loop, which it does not hold up; cancelled before its turn, it never begins.

        Raises:
            GrammarError, GrammarUnavailable: as above, and GrammarUnavailable after `seconds`.
        """
        if found := self._remembered(text):
            return found
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._begin(text)), seconds)
        except TimeoutError as error:
            raise GrammarUnavailable(
                f"the grammar was not compiled within {seconds:g} s: too many are asked"
            ) from error

    def _begin(self, text: str) -> Future[CompiledGrammar]:
        check_size(text)
        return ROOM.submit(partial(self._compile_checked, text))

    def _compile_checked(self, text: str) -> CompiledGrammar:
        memory = self._read()
        if found := memory.get(text):  # compiled for another thread or model, meanwhile
            return found
        checked = ROOM.processes.check(memory.number, self._tokenizer_text, text)
        return self._begun(memory, text, checked.lark, matcher_of(memory.environment, checked.lark), checked.num_bytes)

    def _compile_here(self, lark: str) -> CompiledGrammar:
        memory = self._read()
        if found := memory.get(lark):
            return found
        environment = memory.environment
        before = heap_bytes()
        matcher = matcher_of(environment, lark)
        return self._begun(memory, lark, lark, matcher, max(heap_bytes() - before, 0) + len(lark))

    def _begun(
        self, memory: GrammarMemory, text: str, lark: str, matcher: LLMatcher, num_bytes: int
    ) -> CompiledGrammar:
        grammar = CompiledGrammar(lark, num_bytes, matcher, self._vocab_size, memory.environment.eos_token)
        try:
            grammar.start(()).allowed(())
        except GrammarFailed as failure:  # what breaks at the first token breaks here
            raise GrammarError(str(failure)) from failure
        memory.keep(text, grammar)
        return grammar

    def _remembered(self, text: str) -> CompiledGrammar | None:
        return self._memory and self._memory.get(text)

    @property
    def remembered_bytes(self) -> int:
        return self._memory.num_bytes if self._memory else 0

    def _read(self) -> GrammarMemory:
        """Of a large vocabulary this takes a moment: not for an event loop."""
        if self._memory is None:
            self._memory = _memory_of(self._tokenizer_text(), self._vocab_size)
        return self._memory

    def _tokenizer_text(self) -> TokenizerText:
        """Ends are ours to allow: llguidance knows one, which stands for them all and is never fed to it."""
        hf, backend = self._tokenizer.hf, self._tokenizer.backend
        specials = sorted(self._tokenizer.special_ids)
        eos: int | None = hf.eos_token_id  # type: ignore[assignment]
        end = eos if eos is not None else specials[0] if specials else self._vocab_size - 1
        size = max(self._vocab_size, 1 + max(backend.get_vocab().values(), default=0))
        return TokenizerText(backend.to_str(), size, end)


class CompiledGrammar:
    """See `base.Grammar`. `num_bytes`: what it holds, about."""

    thought: ThoughtPhase | None = None
    closing: int | None = None

    def __init__(self, lark: str, num_bytes: int, matcher: LLMatcher, vocab_size: int, end: int) -> None:
        self.text = lark
        self.num_bytes = num_bytes
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
        if failure := failure_of(self._matcher, len(self._taken)):
            raise GrammarFailed(failure)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    if list(right[: len(left)]) == left:
        return len(left)
    pairs = zip(left, right, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))
