"""Thoughts and closed JSON as the engines see them: masks over one answer, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest

from motet.engines.base import ThoughtPhase
from motet.engines.grammars import Grammars
from tests.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer(extra=["<t>", "k>!"])
SIZE = TOKENIZER.size
END = TOKENIZER.single_id("<|end|>") or 0
GRAMMARS = Grammars(TOKENIZER, SIZE)
DIGITS = "start: /[0-9]{2}/"


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def phase(budget: int | None = None, *, opened: bool = False) -> ThoughtPhase:
    return ThoughtPhase(() if opened else tuple(ids("<think>")), tuple(ids("</think>")), "</think>", budget)


def allowed(mask: bytes | bytearray | memoryview) -> set[int]:
    return {token for token in range(len(mask) * 8) if mask[token // 8] >> token % 8 & 1}


def texts(tokens: Sequence[int]) -> set[str]:
    return {TOKENIZER.text_of(token) for token in tokens}


def test_within_a_thought_everything_but_the_end_of_the_answer() -> None:
    matcher = GRAMMARS.after_thought(phase(), None).start([END])
    for written in ("<think>", "<think>what", "<think></thin"):
        assert allowed(matcher.allowed(ids(written))) == set(range(SIZE)) - {END}
    for written in ("", "Hello", "<think>so</think>", "<think>so</think>Yes"):
        assert allowed(matcher.allowed(ids(written))) == set(range(SIZE))


def test_the_grammar_begins_behind_the_thought() -> None:
    matcher = GRAMMARS.after_thought(phase(), GRAMMARS.compile(DIGITS)).start([END])
    digits = set("0123456789")
    assert texts(sorted(allowed(matcher.allowed([])))) == digits | {"<"}, "a thought, or the answer at once"
    assert texts(sorted(allowed(matcher.allowed(ids("4"))))) == digits
    assert len(allowed(matcher.allowed(ids("<think>4")))) == SIZE - 1
    assert texts(sorted(allowed(matcher.allowed(ids("<think>4</think>"))))) == digits
    assert allowed(matcher.allowed(ids("<think>4</think>42"))) == {END}
    assert texts(sorted(allowed(matcher.allowed(ids("<think>4</think>"))))) == digits, "a draft was taken back"


def test_the_tag_is_known_in_any_spelling() -> None:
    token = TOKENIZER.single_id("k>!") or 0
    matcher = GRAMMARS.after_thought(phase(opened=True), GRAMMARS.compile(DIGITS)).start([END])
    assert texts(sorted(allowed(matcher.allowed([*ids("so</thin"), token])))) == set("0123456789")


@pytest.mark.parametrize("opened", [True, False])
def test_behind_the_budget_the_thought_is_closed(opened: bool) -> None:
    matcher = GRAMMARS.after_thought(phase(3, opened=opened), GRAMMARS.compile(DIGITS)).start([END])
    written = [] if opened else ids("<think>")
    assert len(allowed(matcher.allowed([*written, *ids("ab")]))) == SIZE - 1
    written += ids("abc")
    for letter in "</think>":
        assert texts(sorted(allowed(matcher.allowed(written)))) == {letter}
        written += ids(letter)
    assert texts(sorted(allowed(matcher.allowed(written)))) == set("0123456789")


def test_no_thought_at_all() -> None:
    """A budget of 0: an open thought is closed at once, and none is begun."""
    opened = GRAMMARS.after_thought(phase(0, opened=True), None).start([END])
    assert texts(sorted(allowed(opened.allowed([])))) == {"<"}
    matcher = GRAMMARS.after_thought(phase(0), None).start([END])
    assert ids(">")[0] not in allowed(matcher.allowed(ids("<think")))
    assert ids(">")[0] in allowed(matcher.allowed(ids("<thin")))


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
    "required": ["name", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.mark.parametrize("other", [min, max])
def test_open_json_is_closed_in_time(other: Callable[..., int]) -> None:
    """Whoever would write on for ever is led to the end as soon as that can be, and brackets in a text lead nowhere."""
    grammar = GRAMMARS.closing(GRAMMARS.compile(f"start: %json {json.dumps(SCHEMA)}"), 24)
    matcher = grammar.start([END])
    written: list[int] = []
    while len(written) < 80:
        mask = allowed(matcher.allowed(written))
        token = ids("a")[0] if ids("a")[0] in mask else other(mask - {END}, default=END)
        if token == END:
            break
        written.append(token)
    answer = json.loads(TOKENIZER.decode(written))
    assert answer["name"].startswith("aaa")
    assert len(written) < 50


NUMBERS: dict[str, dict[str, dict[str, object]]] = {
    "integer": {"properties": {"n": {"type": "integer"}, "b": {"type": "boolean"}}},
    "number": {"properties": {"n": {"type": "number"}, "m": {"type": "number"}}},
    "list": {"properties": {"n": {"type": "array", "items": {"type": "integer"}, "minItems": 3}}},
    "last": {"properties": {"b": {"type": "boolean"}, "n": {"type": "integer"}}},
    "beside text": {"properties": {"n": {"type": ["integer", "string"]}, "b": {"type": "null"}}},
}
SPACED = {"whitespace_pattern": "[ \\n]{0,2}", "item_separator": ",", "key_separator": ":"}


@pytest.mark.parametrize("spacing", [{"whitespace_flexible": False}, SPACED], ids=["tight", "spaced"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_end_in_time(kind: str, spacing: dict[str, object]) -> None:
    """Before another property, within a list, and at the end; whoever writes would never end one."""
    names = list(NUMBERS[kind]["properties"])
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": names,
        "x-guidance": spacing,
        **NUMBERS[kind],
    }
    matcher = GRAMMARS.closing(GRAMMARS.compile(f"start: %json {json.dumps(schema)}"), 24).start([END])
    for preferred in ("7", ".7", ".7e"):
        written: list[int] = []
        while len(written) < 80:
            mask = allowed(matcher.allowed(written))
            wanted = [token for letter in reversed(preferred) if (token := ids(letter)[0]) in mask]
            token = min(mask - {END}, default=END) if not wanted else wanted[0]
            if token == END:
                break
            written.append(token)
        text = TOKENIZER.decode(written)
        assert "777" in text
        assert json.loads(text).keys() == set(names), text
        assert len(written) < 60


@pytest.mark.parametrize("pattern", ["[0-9a-z, ]+!", "[a-z,]+ [0-9]"])
def test_commas_of_a_text_end_no_number(pattern: str) -> None:
    matcher = GRAMMARS.closing(GRAMMARS.compile(f"start: /{pattern}/"), 2).start([END])
    assert {"a", ","} < texts(sorted(allowed(matcher.allowed(ids("abc, d" if "!" in pattern else "abc,d")))))


def test_free_text_is_not_closed() -> None:
    matcher = GRAMMARS.closing(GRAMMARS.compile("start: /(.|\\n)*/"), 2).start([END])
    assert len(allowed(matcher.allowed(ids("a long text")))) > SIZE / 2
