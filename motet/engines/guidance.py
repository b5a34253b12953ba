"""llguidance as Motet asks it, the same in every process; imported when a grammar is first compiled."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from motet.engines.grammar_limits import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Where the next bytes are certain, llguidance would allow only the token that the tokenizer writes them with by itself:
# a wrong one where the tokenizer puts a space before every text. A mask means all tokens that can be completed.
NOT_FORCED = '\n%llguidance {"no_forcing": true}\n'
# While an answer is decoded. A mask at the library's 50,000 items took 300 ms, in which every other request waits; at
# 10,000 it takes 13 to 60 ms. 250,000 states held 105 MiB for one answer; free JSON of 3,000 tokens holds 6 MiB in all.
MAX_ITEMS = 10_000
MAX_STATES = 50_000
MAX_REASON = 300  # characters of the library's reason, which may quote the grammar


def matcher_of(environment: LLTokenizer, lark: str) -> LLMatcher:
    """Raises GrammarError."""
    from llguidance import LLMatcher

    matcher = LLMatcher(environment, lark + NOT_FORCED, log_level=0, limits=_limits())
    if reason := matcher.get_error():
        raise GrammarError(shown(reason))
    return matcher


def failure_of(matcher: LLMatcher, num_taken: int) -> str | None:
    """Why the grammar cannot be followed behind so many tokens; None where it can."""
    if not matcher.is_error():
        return None
    reason = shown(matcher.get_error())
    if reason.startswith("NoExtensionBias"):
        reason = "no token of the vocabulary can come next"
    return f"the grammar cannot be followed behind token {num_taken}: {reason}"


def is_lark(text: str) -> bool:
    """Whether some line begins as only Lark does; llama.cpp's GBNF has neither."""
    return any(_begins_lark(line.lstrip()) for line in text.split("\n"))


def _begins_lark(line: str) -> bool:
    rest = line[5:].lstrip() if line.startswith("start") else ""
    return line.startswith("%llguidance") or (rest.startswith(":") and not rest.startswith("::="))


def as_lark(text: str) -> str:
    """Lark as it is; GBNF translated. Raises GrammarError: it is neither."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if is_lark(text):
        return text
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # its parser raises whatever its parts raise
        raise GrammarError(f"the grammar is neither Lark nor GBNF: {shown(str(error))}") from error


def shown(reason: str) -> str:
    """Without the excerpt of the grammar or the traceback that may follow, and without the middle of a long one."""
    reason = reason.partition("<backtrace>")[0]
    lines = itertools.takewhile(lambda line: not _is_excerpt(line), reason.split("\n"))
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= MAX_REASON else f"{text[:100]} … {text[-100:]}"


def _is_excerpt(line: str) -> bool:
    number, bar, _ = line.partition(" | ")
    return bool(bar) and number.strip().isdigit()


def _limits() -> LLParserLimits:
    """The library's longer messages would show the parser's insides."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False, step_max_items=MAX_ITEMS, max_lexer_states=MAX_STATES)
