"""Grammars against brute force: what a mask allows can be completed, what it forbids cannot."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from motet.engines.base import Matcher
from motet.engines.grammars import REMEMBERED, CompiledGrammar, GrammarError, Grammars
from motet.models.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer

TOKENS = ("a", "b", "c", "ab", "bc", "aa", "abc", "ca")
END, OTHER_END = 8, 9
WIDTH = 10


def tiny_tokenizer() -> Tokenizer:
    """Three letters, words of them that overlap, and two special tokens."""
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<end>", "<stop>")])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>"))


TINY = Grammars(tiny_tokenizer(), WIDTH)
BYTES = byte_tokenizer()
BYTE_GRAMMARS = Grammars(BYTES, BYTES.size)
BYTE_END = BYTES.start_id or 0


def of_regex(regex: str, grammars: Grammars = TINY) -> CompiledGrammar:
    return grammars.compile(f"start: /{regex}/")


def tokens_of(mask: Sequence[int] | bytes | bytearray | memoryview, width: int = WIDTH) -> set[int]:
    bits = np.unpackbits(np.frombuffer(bytes(mask), dtype=np.uint8), bitorder="little")
    assert len(bits) == (width + 31) // 32 * 32
    assert not bits[width:].any()
    return {int(token) for token in np.flatnonzero(bits)}


def text_of(tokens: Sequence[int]) -> str:
    return "".join(TOKENS[token] for token in tokens)


LONGEST = 7
ALL_TEXTS = ["".join(letters) for n in range(LONGEST + 1) for letters in itertools.product("abc", repeat=n)]
REGEXES = ["ab|cd*|abcabc", "(ab)*c?", "a{2,3}(b|c)+", "[^b]*", "(a|ab)(c|bca)?(abc)*", "aaa|", "(?i)ABC*", ".*ca"]


@pytest.mark.parametrize("regex", REGEXES)
def test_masks_are_those_of_brute_force(regex: str) -> None:
    """Every answer of at most two tokens, in any order; completions of short ones take no more than LONGEST letters."""
    matching = [text for text in ALL_TEXTS if re.fullmatch(regex, text, re.DOTALL)]
    matcher = of_regex(regex).start((END, OTHER_END))
    begun = [answer for n in range(3) for answer in itertools.product(range(len(TOKENS)), repeat=n)]
    np.random.default_rng(0).shuffle(begun)  # type: ignore[arg-type]
    seen = 0
    for answer in begun:
        text = text_of(answer)
        if not any(other.startswith(text) for other in matching):
            assert tokens_of(matcher.allowed(answer)) == set()
            continue
        expected = {token for token, added in enumerate(TOKENS) if any(o.startswith(text + added) for o in matching)}
        is_short = all(len(text + added) <= LONGEST - 3 for added in TOKENS)
        got = tokens_of(matcher.allowed(answer))
        assert (got & {END, OTHER_END}) == ({END, OTHER_END} if text in matching else set())
        if is_short:
            seen += 1
            assert got - {END, OTHER_END} == expected
    assert seen


@settings(max_examples=60, deadline=None)
@given(
    regex=st.sampled_from(REGEXES),
    answers=st.lists(st.lists(st.integers(0, WIDTH - 1), max_size=6), min_size=2, max_size=8),
)
def test_any_beginning_may_follow_any_other(regex: str, answers: list[list[int]]) -> None:
    """Answers that are taken back, or that were never possible: the masks are those of a fresh matcher."""
    matcher = of_regex(regex).start((END,))
    for answer in answers:
        assert matcher.allowed(answer) == of_regex(regex).start((END,)).allowed(answer)


def test_a_limit_that_cannot_be_rolled_back_is_walked_anew() -> None:
    grammar = BYTE_GRAMMARS.compile('start: many "x"\nmany[max_tokens=3]: /b*/')
    matcher = grammar.start((BYTE_END,))
    for text in ("bbbx", "bb", "bbx", "x"):
        answer = BYTES.encode(text)
        assert matcher.allowed(answer) == grammar.start((BYTE_END,)).allowed(answer)


def drawn(matcher: Matcher, logits: np.random.Generator, steps: int) -> list[int]:
    """An answer at random logits, until it ends."""
    answer: list[int] = []
    while len(answer) < steps and BYTE_END not in answer:
        allowed = sorted(tokens_of(matcher.allowed(answer), BYTES.size))
        assert allowed
        scores = logits.normal(size=len(allowed)) * 3
        answer.append(allowed[int(scores.argmax())])
    return answer


SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["x", 1, None, True]}, "minItems": 2, "maxItems": 4},
    {
        "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "boolean"}}, "additionalProperties": False}},
        "anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2}],
    },
]
WANTED = [
    ({"name": "x", "age": 3}, {"age": 3}),
    (["x", 1], ["y", 1]),
    ({"v": True}, {"v": 1}),
]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), number=st.integers(0, len(SCHEMAS) - 1), steps=st.integers(1, 60))
def test_drawn_json_keeps_to_its_schema(seed: int, number: int, steps: int) -> None:
    """Whole when it ends, and else completable: closed quickly, it is whole too."""
    schema = SCHEMAS[number] | {"x-guidance": {"whitespace_flexible": False}}
    matcher = BYTE_GRAMMARS.compile(f"start: %json {json.dumps(schema)}").start((BYTE_END,))
    answer = drawn(matcher, np.random.default_rng(seed), steps)
    while BYTE_END not in answer:
        allowed = tokens_of(matcher.allowed(answer), BYTES.size)
        closing = [token for token in BYTES.encode('"}],') if token in allowed]
        answer.append(
            BYTE_END if BYTE_END in allowed else closing[0] if closing else min(allowed & PRINTABLE or allowed)
        )
        assert len(answer) < steps + 200
    assert jsonschema_rs.is_valid(SCHEMAS[number], json.loads(BYTES.decode(answer[:-1])))


PRINTABLE = {token for token in range(256) if 32 <= BYTES.bytes_of(token)[0] < 127}


@pytest.mark.parametrize(("schema", "pair"), zip(SCHEMAS, WANTED, strict=True))
def test_whole_answers_are_taken_or_refused(schema: dict[str, Any], pair: tuple[Any, Any]) -> None:
    matcher = BYTE_GRAMMARS.compile(f"start: %json {json.dumps(schema)}").start((BYTE_END,))
    good, bad = (tokens_of(matcher.allowed(BYTES.encode(json.dumps(value))), BYTES.size) for value in pair)
    assert BYTE_END in good
    assert BYTE_END not in bad


DRAWN = [r"[a-z]{1,9}(é|[0-9])*!", "(yes|no|maybe)(, sir)?", "[^ ]+ [^ ]+"]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), regex=st.sampled_from(DRAWN))
def test_drawn_text_matches_or_begins_a_match(seed: int, regex: str) -> None:
    matcher = of_regex(regex, BYTE_GRAMMARS).start((BYTE_END,))
    answer = drawn(matcher, np.random.default_rng(seed), 25)
    if answer[-1] == BYTE_END:
        assert re.fullmatch(regex, BYTES.decode(answer[:-1]), re.DOTALL)
    else:
        assert tokens_of(matcher.allowed(answer), BYTES.size)


def test_behind_an_end_come_ends_alone() -> None:
    matcher = of_regex("a*").start((END, OTHER_END))
    assert tokens_of(matcher.allowed([0, OTHER_END, 0, 3])) == {END, OTHER_END}
    assert tokens_of(matcher.allowed([0])) == {0, 5, END, OTHER_END}


def test_ends_are_the_engines_not_the_tokenizers() -> None:
    """The tokenizer's own end is no end where the engine has another, and an end is never text."""
    assert tokens_of(of_regex("a*").start((OTHER_END,)).allowed([])) == {0, 5, OTHER_END}
    assert tokens_of(of_regex("a*b").start((1,)).allowed([])) == {0, 3, 5}
    assert tokens_of(of_regex("a*|b").start(()).allowed([])) == {0, 1, 5}


def test_tokenizers_with_more_tokens_than_the_composition() -> None:
    assert tokens_of(Grammars(tiny_tokenizer(), 6).compile(of_regex("a*c?").text).start((END,)).allowed([0]), 6) == {
        0,
        2,
        5,
    }


def test_tokenizers_without_an_end() -> None:
    hf = tiny_tokenizer().hf
    hf.eos_token = None  # type: ignore[assignment]
    grammar = Grammars(Tokenizer(hf), WIDTH).compile(of_regex("(a|b)*").text)
    assert tokens_of(grammar.start((OTHER_END,)).allowed([])) == {0, 1, 3, 5, OTHER_END}


def test_tokenizers_that_put_a_space_before_every_text() -> None:
    """What comes next is certain here; the tokenizer alone would write it with a space."""
    tokenizer = byte_tokenizer()
    tokenizer.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    matcher = Grammars(tokenizer, tokenizer.size).compile("start: /yes|no/").start((BYTE_END,))
    for answer, following in (("", "yn"), ("y", "e"), ("ye", "s"), ("n", "o")):
        ids = [tokenizer.single_id(letter) or 0 for letter in answer]
        allowed = tokens_of(matcher.allowed(ids), tokenizer.size)
        assert allowed == {tokenizer.single_id(letter) for letter in following}


def test_tokenizers_with_tokens_of_single_bytes_beside_words() -> None:
    """As SentencePiece makes them: a word carries its space, other characters are bytes."""
    words = ["<unk>", "▁town", "town", "▁", "é"]
    tokens = {token: i for i, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = Backend(models.BPE(tokens, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    byte = {text: tokens[f"<0x{text[0]:02X}>"] for text in (b"t", b" ", b"\xc3", b"\xa9")}
    matcher = Grammars(tokenizer, len(tokens)).compile('start: "town" " " "é"').start(())
    assert tokens_of(matcher.allowed([]), len(tokens)) == {tokens["town"], byte[b"t"]}
    assert tokens_of(matcher.allowed([tokens["town"]]), len(tokens)) == {tokens["▁"], byte[b" "]}
    both = tokens_of(matcher.allowed([tokens["town"], tokens["▁"]]), len(tokens))
    assert both == {tokens["é"], byte[b"\xc3"]}
    assert tokens_of(matcher.allowed([tokens["town"], tokens["▁"], byte[b"\xc3"]]), len(tokens)) == {byte[b"\xa9"]}


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("start: /a(b/", "unclosed group"),
        ("start: /a(?=b)/", "look-around"),
        ("start: /d/", "behind token 0: no token of the vocabulary"),
        ("start: stat", "unknown name"),
        ('start: %json {"type": "objct"}', "Invalid type"),
        ('start: %json {"minimum": 5, "maximum": 3, "type": "integer"}', "Unsatisfiable"),
        ("{", "1"),
    ],
)
def test_grammars_that_cannot_be_compiled(grammar: str, said: str) -> None:
    with pytest.raises(GrammarError, match=said):
        TINY.compile(grammar)


def test_grammars_are_remembered_up_to_a_number() -> None:
    grammars = Grammars(tiny_tokenizer(), WIDTH)
    first = of_regex("a", grammars)
    assert of_regex("a", grammars) is first
    for count in range(2, REMEMBERED + 2):
        of_regex(f"a{{{count}}}", grammars)
    assert of_regex("a", grammars) is not first
