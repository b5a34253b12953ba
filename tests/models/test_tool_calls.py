"""Calls of tools are read the same however their text is cut, and what is none stays text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pytest

from motet.models.tool_calls import CallArguments, CallBegin, CallReader, Part, Said
from motet.models.tool_formats import TOOL_FORMATS

FORMATS = list(TOOL_FORMATS)
MARKED = [name for name, form in TOOL_FORMATS.items() if not form.is_bare]
BARE = [name for name, form in TOOL_FORMATS.items() if form.is_bare]
NAMES = {"get_weather", "clock"}
ARGUMENTS = '{"city": "Quito \\"}] {", "days": [1, {"n": 2.5}], "ok": true}'
CALLS = [("get_weather", ARGUMENTS), ("clock", "{}")]


def read(name: str, pieces: Iterable[str]) -> list[str | tuple[int, str, str]]:
    """Texts, and calls as (index, name, arguments)."""
    reader = CallReader(TOOL_FORMATS[name], NAMES)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.flush()
    return together(parts)


def together(parts: Sequence[Part]) -> list[str | tuple[int, str, str]]:
    found: list[str | tuple[int, str, str]] = []
    for part in parts:
        last = found[-1] if found else None
        match part:
            case CallBegin(index=index, name=name):
                found.append((index, name, ""))
            case CallArguments(index=index, text=text):
                assert isinstance(last, tuple)
                assert last[0] == index, "arguments follow their call's beginning"
                found[-1] = (index, last[1], last[2] + text)
            case Said(text=text) if isinstance(last, str):
                found[-1] = last + text
            case Said(text=text):
                found.append(text)
            case _:
                raise AssertionError(part)
    return found


def cuttings(text: str) -> Iterable[list[str]]:
    """Whole, letter by letter, and in two at every place."""
    yield [text]
    yield list(text)
    for place in range(1, len(text)):
        yield [text[:place], text[place:]]


@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_read_in_all_cuttings(name: str) -> None:
    text = TOOL_FORMATS[name].written(CALLS)
    for pieces in cuttings(text):
        assert read(name, pieces) == [(0, "get_weather", ARGUMENTS), (1, "clock", "{}")]


@pytest.mark.parametrize("name", MARKED)
def test_text_around_marked_calls_stays_without_the_space_between(name: str) -> None:
    mark = (TOOL_FORMATS[name].section + TOOL_FORMATS[name].opens).split()[0]
    text = f"I look {mark[:4]} it up.\n\n{TOOL_FORMATS[name].written(CALLS)}\nThat is all."
    for pieces in cuttings(text):
        found = read(name, pieces)
        assert found == [f"I look {mark[:4]} it up.", (0, "get_weather", ARGUMENTS), (1, "clock", "{}"), "That is all."]


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_breaks_off_shows_what_there_is(name: str) -> None:
    """At `max_tokens`: the arguments so far, as OpenAI streams them, and nothing of what closes a call."""
    form = TOOL_FORMATS[name]
    whole = form.written([("get_weather", ARGUMENTS)])
    assert read(name, [whole[: whole.index("days")]]) == [(0, "get_weather", '{"city": "Quito \\"}] {", "')]
    for cut in range(1, len(form.closes) + len(form.ends) + 1):
        assert read(name, [whole[:-cut]]) == [(0, "get_weather", ARGUMENTS)]


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("broken", ["", " nothing", ' {"name": 5}', ' {"nam', "\n\n"])
def test_what_is_no_call_stays_text(name: str, broken: str) -> None:
    mark = (TOOL_FORMATS[name].section + TOOL_FORMATS[name].opens).split()[0]
    text = f"See {mark}{broken}"
    for pieces in cuttings(text):
        assert read(name, pieces) == [text]


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "stranger", "arguments": {}}',  # JSON that was asked for, perhaps
        '{"name": "clock"}',
        '{"answer": 42}',
        '{"name": "clo',
        "  \n",
        'It is {"name": "clock", "arguments": {}}',
        "{",
    ],
)
def test_json_that_calls_no_offered_function_is_text(name: str, text: str) -> None:
    for pieces in cuttings(text):
        assert read(name, pieces) == [text]


@pytest.mark.parametrize("name", [name for name in FORMATS if not TOOL_FORMATS[name].separator])
@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "clock"}', '{"a": 1}'),
        ('{"id": "x", "name": "clock", "parameters": {"a": [1]}, "more": {"b": "}"}}', '{"a": [1]}'),
        ('{"name":"clock","arguments":"{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "clock", "arguments": null}', "{}"),
    ],
)
def test_other_ways_to_write_a_call(name: str, body: str, arguments: str) -> None:
    form = TOOL_FORMATS[name]
    text = f"{form.section}{form.opens}{body}{form.closes}{form.ends}"
    for pieces in cuttings(text):
        assert read(name, pieces) == [(0, "clock", arguments)]


def test_llamas_tag_says_nothing() -> None:
    text = '<|python_tag|>{"name": "clock", "parameters": {}}'
    for pieces in cuttings(text):
        assert read("llama3_json", pieces) == [(0, "clock", "{}")]


@pytest.mark.parametrize("must", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_what_begins_as_a_call_is_no_text_where_the_answer_is_cut(name: str, must: bool) -> None:
    """Wherever it is cut; where calls are free, as soon as their mark is whole, or what nothing marks has a name."""
    form = TOOL_FORMATS[name]
    lead = "" if must or form.is_bare else "I look."
    whole = lead + form.written(CALLS)
    mark = len(lead + (form.section + form.opens).split()[0]) if not form.is_bare else whole.index(', "')
    for cut in range(len(whole)):
        for pieces in ([whole[:cut]], list(whole[:cut])):
            reader = CallReader(form, NAMES, must_call=must)
            parts = [part for piece in pieces for part in reader.push(piece)] + reader.flush(is_cut=True)
            said = "".join(part.text for part in parts if isinstance(part, Said))
            assert said == (whole[:cut] if cut < mark and not must else lead), whole[:cut]
            calls = [one for one in together(parts) if isinstance(one, tuple)]
            assert reader.is_open == (bool(calls) and not _is_json(calls[-1][2]))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_begins_before_its_arguments_are_whole(name: str) -> None:
    reader = CallReader(TOOL_FORMATS[name], NAMES)
    whole = TOOL_FORMATS[name].written([("get_weather", ARGUMENTS)])
    parts = reader.push(whole[: whole.index("days")])
    assert isinstance(parts[0], CallBegin)
    assert "Quito" in "".join(part.text for part in parts if isinstance(part, CallArguments))


@pytest.mark.parametrize(("name", "length"), [("mistral", 9), ("mistral_v11", 9), ("hermes", 29)])
def test_ids_are_new_and_of_the_familys_kind(name: str, length: int) -> None:
    text = TOOL_FORMATS[name].written(CALLS)
    ids = [part.id for part in CallReader(TOOL_FORMATS[name], NAMES).push(text) if isinstance(part, CallBegin)]
    assert len(set(ids)) == 2
    assert {len(one) for one in ids} == {length}
    assert length > 9 or all(one.isalnum() for one in ids)


def test_arguments_are_json() -> None:
    found = read("hermes", list(TOOL_FORMATS["hermes"].written(CALLS)))
    assert isinstance(found[0], tuple)
    assert json.loads(found[0][2])["city"] == 'Quito "}] {'


def test_spaces_without_end_are_not_read_again() -> None:
    """An answer may be megabytes of them: what was held was looked through for each token."""
    reader = CallReader(TOOL_FORMATS["hermes"], NAMES)
    for first in ("Hm", " "):
        reader.push(first)
    held = reader._blank  # pyright: ignore[reportPrivateUsage]
    for _ in range(3):
        assert not reader.push(" \n")
    assert reader._blank is held  # pyright: ignore[reportPrivateUsage]
