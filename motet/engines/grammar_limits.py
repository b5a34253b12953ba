"""What a grammar may be before anything is built from it. Every refusal names the value, the limit and the place.

The limits stand where compiling is still quick and small, far above what real schemas ask (measured with llguidance 1.7
on a vocabulary of 151,665 tokens, where 200 properties or 2,000 values of an `enum` take 12 ms and 1 MiB): 500,000
characters of alternatives take 0.1 s and 15 MiB; between 2,000 and 2,500 definitions, each the reference of the one
before, overflow a stack of 8 MiB; 10,000 `maxItems` take 0.1 s and 14 MiB, 100,000 more symbols than the library can
count, 1,000,000,000 `minItems` gigabytes; `multipleOf` 10,007 takes 0.04 s, 1,000,003 takes 11 s and 276 MiB. Lengths
of strings cost nothing before the answer has them. What these limits do not see is stopped in `grammar_process`.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import unquote

MAX_CHARACTERS = 500_000
MAX_NESTING = 120  # of JSON, counted in braces; llguidance itself stops at 128, and in Lark at 30
MAX_DEFINITIONS = 5_000  # rules and terminals, `$ref`s
MAX_CHAIN = 500  # definitions that lead from one to the next
MAX_ALTERNATIVES = 20_000
MAX_REPEATS = 10_000  # of items, properties, and of what Lark repeats
MAX_LENGTH = 1_000_000  # characters of a string; repetitions within a regular expression
MAX_MULTIPLE = 10_000  # digits of `multipleOf` as a whole number: 0.25 is 25

COUNTS = {
    **dict.fromkeys(
        ("minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"), MAX_REPEATS
    ),
    **dict.fromkeys(("minLength", "maxLength"), MAX_LENGTH),
}
LISTS = ("enum", "anyOf", "oneOf", "allOf", "prefixItems", "items", "type", "required")
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DATA = ("enum", "const", "default", "examples", "required", "x-guidance")
TOKEN = re.compile(  # of Lark; no alternative looks further than what it takes
    r"""(?P<blank>[ \t\r]+|(?:\#|//)[^\n]*)|(?P<newline>\n)
    |(?P<string>"(?:\\.|[^"\\\n])*+"?i?)|(?P<regex>/(?:\\.|[^/\\])++/?)
    |(?P<embedded>%(?:json|llguidance)\b)|(?P<name>[!?]?[A-Za-z_][\w\-]*)|(?P<number>\d+)|(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
REPEATED = re.compile(r"\\.|\{(\d+)(?:,(\d*))?", re.DOTALL)  # in a regular expression
SHOWN = 80  # characters of a place

Kind = Literal["schema", "names", "data"]


class GrammarError(ValueError):
    """A grammar that is too large, cannot be compiled, or that no token of the vocabulary can begin; the message is
    the reason."""


def check_size(text: str) -> None:
    """Raises GrammarError: there are too many characters."""
    _at_most(len(text), MAX_CHARACTERS, "characters")


def check(lark: str) -> None:
    """Raises GrammarError: the grammar, a schema within it or a regular expression is beyond one of the limits."""
    check_size(lark)
    rules = _Rules()
    place, embeds = 0, False
    while place < len(lark):
        if embeds:
            value, place = _json_at(lark, place)
            _check_schema(value)
        match = TOKEN.match(lark, place)
        if match is None:
            break
        rules.take(match.lastgroup or "", match[0])
        embeds, place = match.lastgroup == "embedded", match.end()
    _at_most(len(rules.uses), MAX_DEFINITIONS, "rules")
    _at_most(rules.alternatives, MAX_ALTERNATIVES, "alternatives")
    _check_chain(rules.uses, lambda name: rules.uses.get(name, ()), "rules")


class _Rules:
    """Which names each rule of a Lark grammar uses, token by token."""

    def __init__(self) -> None:
        self.uses: dict[str, list[str]] = {}
        self.alternatives = 0
        self._rule = ""
        self._in_attributes = self._starts_line = True
        self._last = ""

    def take(self, kind: str, text: str) -> None:
        if kind == "blank":
            return
        if kind == "newline":
            self._starts_line = True
            return
        match kind:
            case "name":
                self._take_name(text.lstrip("!?"))
            case "number" if self._last in ("{", ",", "~", "."):
                _at_most_digits(text, MAX_REPEATS, f"repetitions in rule {self._rule[:SHOWN]!r}")
            case "regex":
                check_regex(text, f"rule {self._rule[:SHOWN]!r}")
            case "other":
                self._take_sign(text)
            case _:
                pass
        self._starts_line, self._last = False, text

    def _take_name(self, name: str) -> None:
        if self._starts_line:
            self._rule, self._in_attributes = name, True
            self.uses.setdefault(name, [])
        elif not self._in_attributes:
            self.uses.setdefault(self._rule, []).append(name)
        elif name == "temperature":
            raise GrammarError("a rule's own temperature is not followed; set the request's")

    def _take_sign(self, sign: str) -> None:
        self._in_attributes = self._in_attributes and sign != ":"
        self.alternatives += sign == "|"


def check_regex(regex: str, place: str) -> None:
    """Raises GrammarError: too many repetitions or alternatives; `place` says where it stands."""
    _at_most(regex.count("|"), MAX_ALTERNATIVES, f"alternatives in {place}")
    for match in REPEATED.finditer(regex):
        for digits in match.groups():
            _at_most_digits(digits or "0", MAX_LENGTH, f"repetitions in {place}")


def _json_at(text: str, place: int) -> tuple[Any, int]:
    """The JSON value that begins there, and its end."""
    begin = next((i for i in range(place, len(text)) if not text[i].isspace()), len(text))
    try:
        return json.JSONDecoder().raw_decode(text, begin)
    except RecursionError as error:
        raise GrammarError(f"more than {MAX_NESTING} levels of nesting") from error
    except ValueError as error:
        raise GrammarError(f"what stands behind %json is no JSON: {error}") from error


def _check_schema(schema: Any) -> None:
    refs: list[tuple[str, str]] = []  # pointer of the `$ref`, pointer that it names
    for value, kind, pointer, depth in _walk(schema):
        if isinstance(value, dict | list):
            _at_most(depth, MAX_NESTING, "levels of nesting at", pointer)
        if kind != "schema" or not isinstance(value, dict):
            continue
        keywords = cast(Mapping[str, Any], value)
        _check_keywords(keywords, pointer)
        if isinstance(target := keywords.get("$ref"), str):
            refs.append((f"{pointer}/$ref", unquote(target)))
    _at_most(len(refs), MAX_DEFINITIONS, "$refs")
    refs.sort()
    sources = [source for source, _ in refs]

    def beneath(pointer: str) -> list[str]:
        first, last = bisect_left(sources, f"{pointer}/"), bisect_left(sources, f"{pointer}0")  # "0" follows "/"
        return [target for _, target in refs[first:last]]

    _check_chain(beneath("#"), beneath, "$refs")


def _walk(schema: Any) -> Iterator[tuple[Any, Kind, str, int]]:
    """Every value with what it is, its JSON pointer and its depth."""
    left: list[tuple[Any, Kind, str, int]] = [(schema, "schema", "#", 1)]
    while left:
        value, kind, pointer, depth = left.pop()
        yield value, kind, pointer, depth
        if isinstance(value, dict):
            for key, inner in cast(dict[str, Any], value).items():
                name = key.replace("~", "~0").replace("/", "~1")
                left.append((inner, _kind_of(kind, key), f"{pointer}/{name}", depth + 1))
        elif isinstance(value, list):
            for place, inner in enumerate(cast(list[Any], value)):
                left.append((inner, kind, f"{pointer}/{place}", depth + 1))


def _kind_of(parent: Kind, key: str) -> Kind:
    if parent != "schema":
        return "schema" if parent == "names" else "data"
    return "names" if key in SCHEMAS_BY_NAME else "data" if key in DATA else "schema"


def _check_keywords(schema: Mapping[str, Any], pointer: str) -> None:
    for key, most in COUNTS.items():
        if isinstance(count := schema.get(key), int | float):
            _at_most(count, most, f"{key} at", pointer)
    for key in LISTS:
        if isinstance(values := schema.get(key), list):
            _at_most(len(cast(list[Any], values)), MAX_ALTERNATIVES, f"values of {key} at", pointer)
    if isinstance(pattern := schema.get("pattern"), str):
        check_regex(pattern, _shortened(pointer))
    for pattern in cast(Sequence[str], schema.get("patternProperties") or ()):
        check_regex(pattern, _shortened(pointer))
    if isinstance(multiple := schema.get("multipleOf"), int | float):
        _at_most(_digits(multiple), MAX_MULTIPLE, "as the digits of multipleOf at", pointer)


def _digits(number: float) -> int:
    """The number without its point and the zeros at its ends, as the library counts with it: 0.25 → 25."""
    if isinstance(number, bool) or (isinstance(number, float) and not math.isfinite(number)):
        return 0  # refused by the library
    mantissa, _, power = repr(number).partition("e")
    whole, _, part = mantissa.partition(".")
    part = part.rstrip("0")
    return abs(int(whole + part)) * 10 ** max(int(power or 0) - len(part), 0)


def _check_chain(starts: Iterable[str], following: Callable[[str], Sequence[str]], what: str) -> None:
    """The library recurses along them. A circle counts up to where it closes."""
    lengths: dict[str, int] = {}  # of the longest chain that begins with a name; 0 while it is being followed
    for start in starts:
        path = [] if start in lengths else [(start, iter(following(start)))]
        lengths.setdefault(start, 0)
        while path:
            name, others = path[-1]
            other = next(others, None)
            if other is None:
                path.pop()
                lengths[name] = 1 + max((lengths[other] for other in following(name)), default=0)
                _at_most(lengths[name], MAX_CHAIN, f"{what} in a row, from", name)
            elif other not in lengths:
                lengths[other] = 0
                path.append((other, iter(following(other))))


def _at_most(value: float, most: int, what: str, place: str = "") -> None:
    if value > most:
        shown = f"{int(value):,}" if value < 10**15 else f"{value:.3g}" if value < 10**300 else "more than 1e300"
        raise GrammarError(f"{' '.join((shown, what, _shortened(place))).rstrip()}: at most {most:,} are allowed")


def _at_most_digits(digits: str, most: int, what: str) -> None:
    _at_most(int(digits[:400]), most, what)


def _shortened(place: str) -> str:
    return place if len(place) <= SHOWN else f"{place[: SHOWN // 2]}…{place[-SHOWN // 2 :]}"
