"""A fenced block of JSON is a call where it is the whole answer and names a function; everything else stays text, and
comes as soon as that is certain."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from motet.models.fenced_calls import CLOSED, FencedCallReader
from motet.models.tool_calls import CallArguments, CallBegin, Part, Said
from motet.models.tool_formats import TOOL_FORMATS
from tests.models.test_tool_calls import ARGUMENTS, NAMES, cuttings

CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'


def read(pieces: Iterable[str], form: str = "hermes") -> tuple[str, list[Part]]:
    """The text, and the parts of a call."""
    reader = FencedCallReader(TOOL_FORMATS[form], NAMES)
    said = "".join(reader.push(piece) for piece in pieces)
    parts = reader.flush()
    said += "".join(part.text for part in parts if isinstance(part, Said))
    return said, [part for part in parts if not isinstance(part, Said)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"```json\n{CALL}\n```", ARGUMENTS),
        (f"\n```\n{CALL}\n```\n\n", ARGUMENTS),
        ('```json\n{\n  "arguments": {"a": "```"},\n  "name": "clock"\n}\n```', '{"a": "```"}'),
        ('```json {"name":"clock","parameters":{}}```', "{}"),
    ],
)
def test_a_block_alone_is_a_call(text: str, arguments: str) -> None:
    for pieces in cuttings(text):
        said, (begin, *rest) = read(pieces)
        assert said == ""
        assert isinstance(begin, CallBegin)
        assert begin.name in NAMES
        assert "".join(part.text for part in rest if isinstance(part, CallArguments)) == arguments


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{CALL}\n```\nThis calls the function.",
        f"So it is:\n```json\n{CALL}\n```",
        f"```json\n{CALL}\n```\n```json\n{CALL}\n```",
        f"```json\n{CALL}\n{CALL}\n```",
        f"```json\n[{CALL}]\n```",
        f"```json\n{CALL}",  # ended by max_tokens
        f"```json\n{CALL}\n``",
        f"```python\n{CALL}\n```",
        CALL,
        '```json\n{"name": "stranger", "arguments": {}}\n```',
        '```json\n{"name": "clock"}\n```',
        '```json\n{"name": "clock", "arguments": {}, "id": 1}\n```',
        '```json\n{"name": "clock", "arguments": {}, "parameters": {}}\n```',
        '```json\n{"arguments": {}, "parameters": {}}\n```',
        '```json\n{"name": "clock", "arguments": "{}"}\n```',
        '```json\n{"name": "clock", "arguments": {"a": NaN}}\n```',
        '```json\n{"arguments": {}, "name": ["clock"]}\n```',
        '```json\n{"name": "stranger", "name": "clock", "arguments": {}}\n```',
        '```json\n{"arguments": ' + "[" * 100_000,
        "```",
        " \n",
        "",
    ],
    ids=lambda text: str(text)[:60],
)
def test_everything_else_stays_text(text: str) -> None:
    for pieces in cuttings(text) if len(text) < 1000 else [[text]]:
        assert read(pieces) == (text, [])


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        ("`", "x"),
        ("```", "python"),
        ("```json\n{", '"town"'),
        ('```json\n{"name": "', "s"),
        (f"```\n{CALL}\n```\n", "T"),
    ],
)
def test_text_waits_no_longer_than_it_may_be_a_call(begin: str, more: str) -> None:
    reader = FencedCallReader(TOOL_FORMATS["hermes"], NAMES)
    assert reader.push(begin) == ""
    assert reader.push(more) == begin + more
    assert reader.push("```json\n") == "```json\n"  # never again in this answer


def test_without_functions_nothing_waits() -> None:
    assert FencedCallReader(TOOL_FORMATS["hermes"], ()).push("```json\n{") == "```json\n{"


@pytest.mark.parametrize(("form", "length"), [("mistral", 9), ("hermes", 29)])
def test_ids_are_of_the_familys_kind(form: str, length: int) -> None:
    _, (begin, *_) = read([f"```json\n{CALL}\n```"], form)
    assert isinstance(begin, CallBegin)
    assert len(begin.id) == length


def test_a_long_block_is_looked_at_once() -> None:
    """An answer may have megabytes: all of it was looked through for each token."""
    reader = FencedCallReader(TOOL_FORMATS["hermes"], NAMES)
    reader.push('```json\n{"name": "clock", "arguments": {"a": "')
    for _ in range(1000):
        assert reader.push("abcdefgh") == ""
    assert sum(map(len, reader._held)) > 8000  # pyright: ignore[reportPrivateUsage]
    assert len(reader._tail) < len(CLOSED)  # pyright: ignore[reportPrivateUsage]
    assert "".join(part.text for part in reader.flush() if isinstance(part, Said)).endswith("abcdefgh")
