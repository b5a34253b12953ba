"""What is refused before anything is built from a grammar, and what real schemas need."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from motet.engines.grammar_limits import (
    MAX_ALTERNATIVES,
    MAX_CHAIN,
    MAX_CHARACTERS,
    MAX_DEFINITIONS,
    MAX_LENGTH,
    MAX_MULTIPLE,
    MAX_NESTING,
    MAX_REPEATS,
    GrammarError,
    check,
)


def in_lark(schema: Any) -> str:
    return f"start: %json {json.dumps(schema)}"


def chain(length: int) -> dict[str, Any]:
    defs: dict[str, Any] = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return {"$defs": defs | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def backwards(length: int) -> dict[str, Any]:
    """A chain that no order of names or text begins with its first."""
    return {
        "$defs": {f"{length - i:05}": {"$ref": f"#/$defs/{length - 1 - i:05}"} for i in range(length)} | {"00000": {}}
    }


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def rules(count: int, *, in_a_row: bool) -> str:
    names = [f"r{i}" for i in range(count)]
    bodies = [*names[1:], '"a"'] if in_a_row else ['"a"'] * count
    return "start: r0\n" + "".join(f"{name}: {body}\n" for name, body in zip(names, bodies, strict=True))


AT_LIMIT: list[
    tuple[Callable[[int], str], int, str]
] = [  # (what makes one of a size, its limit, where the refusal says it is)
    (lambda n: " " * n, MAX_CHARACTERS, "characters"),
    (lambda n: in_lark(chain(n - 1)), MAX_CHAIN, "$refs in a row, from #/$defs/d0"),
    (lambda n: in_lark(backwards(n)), MAX_CHAIN, "$refs in a row, from #/$defs/00500"),
    (lambda n: rules(n - 1, in_a_row=True), MAX_CHAIN, "rules in a row, from start"),
    (lambda n: rules(n - 1, in_a_row=False), MAX_DEFINITIONS, "rules"),
    (lambda n: in_lark({"anyOf": [{"$ref": "#"}] * n}), MAX_DEFINITIONS, "$refs"),
    (lambda n: in_lark(nested(n - 1)), MAX_NESTING, "levels of nesting at #/not/not"),
    (lambda n: in_lark({"enum": list(range(n))}), MAX_ALTERNATIVES, "values of enum at #"),
    (lambda n: in_lark({"properties": {"a": {"anyOf": [{}] * n}}}), MAX_ALTERNATIVES, "anyOf at #/properties/a"),
    (lambda n: "start: " + "|".join(["a"] * (n + 1)), MAX_ALTERNATIVES, "alternatives"),
    (lambda n: f"start: /{'|'.join('a' * (n + 1))}/", MAX_ALTERNATIVES, "alternatives in rule 'start'"),
    (lambda n: in_lark({"items": {"minItems": n}}), MAX_REPEATS, "minItems at #/items"),
    (lambda n: in_lark({"maxItems": float(n)}), MAX_REPEATS, "maxItems at #"),
    (lambda n: in_lark({"allOf": [{"minProperties": n}]}), MAX_REPEATS, "minProperties at #/allOf/0"),
    (lambda n: in_lark({"$defs": {"enum": {"maxProperties": n}}}), MAX_REPEATS, "maxProperties at #/$defs/enum"),
    (lambda n: in_lark({"properties": {"properties": {"maxLength": n}}}), MAX_LENGTH, "maxLength at #/properties"),
    (lambda n: in_lark({"minLength": n}), MAX_LENGTH, "minLength at #"),
    (lambda n: in_lark({"pattern": f"a{{{n}}}"}), MAX_LENGTH, "repetitions in #"),
    (lambda n: in_lark({"patternProperties": {f"a{{2,{n}}}": {}}}), MAX_LENGTH, "repetitions in #"),
    (lambda n: f"start: a\na: /b\\/\\{{{10**9}\\}}c{{1,{n}}}/", MAX_LENGTH, "repetitions in rule 'a'"),
    (lambda n: f'start: "a"{{{n}}}', MAX_REPEATS, "repetitions in rule 'start'"),
    (lambda n: f'start: "a"{{1,{n}}}', MAX_REPEATS, "repetitions in rule 'start'"),
    (lambda n: f'start: "a" ~ 1 .. {n}', MAX_REPEATS, "repetitions in rule 'start'"),
    (lambda n: in_lark({"multipleOf": n}), MAX_MULTIPLE, "the digits of multipleOf at #"),
    (lambda n: in_lark({"multipleOf": n / 1000}), MAX_MULTIPLE, "the digits of multipleOf at #"),
]


@pytest.mark.parametrize(("of_size", "limit", "place"), AT_LIMIT)
def test_what_is_at_a_limit_passes_and_what_is_beyond_is_named(
    of_size: Callable[[int], str], limit: int, place: str
) -> None:
    check(of_size(limit))
    with pytest.raises(GrammarError) as refusal:
        check(of_size(limit + 1))
    said = str(refusal.value)
    assert said.startswith(f"{limit + 1:,} ")
    assert place in said
    assert said.endswith(f": at most {limit:,} are allowed")


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"minItems": 10**9}], "default": {"maxItems": 10**9}, "examples": [{"multipleOf": 10**9}]},
        {"properties": {"minItems": {"const": {"minItems": 10**9}}}},
        {"$defs": {"tree": {"items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"},
        {"$defs": {"a/b ~": {}}, "$ref": "#/$defs/a~1b%20~0"},
        {"multipleOf": 1e-300, "maxLength": None, "minItems": "x", "items": [], "patternProperties": None},
        {"multipleOf": 2e3},
    ],
)
def test_data_and_cycles_are_no_counts_and_no_chains(schema: Any) -> None:
    check(in_lark(schema))


@pytest.mark.parametrize("value", ["1e400", "1" * 4000, "1e18", "NaN"])
def test_numbers_of_any_size_are_refused_or_left_to_the_library(value: str) -> None:
    for key in ("minItems", "multipleOf"):
        try:
            check(f'start: %json {{"{key}": {value}}}')
        except GrammarError as refusal:
            assert len(str(refusal)) < 200  # noqa: PT017  (whether it is refused is the library's matter for some)


def test_a_rules_own_temperature_is_refused_and_the_word_is_not() -> None:
    for grammar in ("start: a\na[temperature=0.5]: /.*/", "start: a\n?a [ max_tokens=3,\ttemperature = 1]: /.*/"):
        with pytest.raises(GrammarError, match="temperature"):
            check(grammar)
    check('start: temperature\ntemperature[max_tokens=99999]: "temperature=0.5"\n// a[temperature=1]:')


BLOWN_UP = [
    "\n",
    " ",
    "_",
    "a",
    '"',
    '"\\',
    "/",
    "/\\",
    "\\",
    "(",
    "?",
    "9",
    "#",
    "%json ",
    "%json 1 ",
    "%json {",
    "%json [",
    "a[",
    "{1,",
]


@pytest.mark.parametrize("piece", BLOWN_UP)
def test_the_check_itself_is_linear(piece: str) -> None:
    """A quadratic one takes minutes: 500,000 characters of a piece, a second of them at most in ten."""
    started = time.process_time()
    try:
        check(piece * (MAX_CHARACTERS // len(piece)))
    except GrammarError as refusal:
        assert len(str(refusal)) < 300  # noqa: PT017
    assert time.process_time() - started < 10


def test_real_schemas_pass() -> None:
    """200 properties, five levels deep, an enum of 2,000 values and long texts."""
    kinds: list[dict[str, Any]] = [{"type": "string", "maxLength": 100_000}, {"type": "number", "multipleOf": 0.01}]
    schema: dict[str, Any] = {"type": "object", "properties": {f"property_{i}": kinds[i % 2] for i in range(200)}}
    for level in range(5):
        schema = {"type": "object", "properties": {f"level_{level}": schema, "list": {"maxItems": 1000}}}
    schema["properties"]["town"] = {"enum": [f"town {i}" for i in range(2000)]}
    check(in_lark(schema))
