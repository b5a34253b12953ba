"""What a request may ask its answer to look like: schemas, regexes, choices, Lark and GBNF, mostly sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.soak.values import Rng, long_list, odd, odd_text, weighted

LIMITS = (0, 1, 2, 5, 20)
HUGE = (1000, 100_000, 10**6, 10**7, 10**9, 2**31, 2**63, 2**64)
FORMATS = ("date", "date-time", "time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "duration", "color")
REGEXES = (
    "[a-z]+", "(yes|no)", r"\d{1,3}", "a*", "(a|b)*c", r"[^\n]{0,20}", r"\w+@\w+\.com", ".", r"\p{L}+", "(?i)abc",
    "[[:alpha:]]",
    "a{2,3}", "", "(", "[", "*", "a**", "(?=a)b", r"(a)\1", r"\b", "^a$", "(?P<x>a)", r"\xff", r"\u{1F71C}", "a{3,2}",
    "(a*)*", "((a+)+)+b", r"\d{1000}", "(a{50}){50}", "[\\", "x{99999999999}", "日本|語",
)  # fmt: skip
LARKS = (
    "start: WORD\nWORD: /[a-z]+/", 'start: "a" | "b" start', 'start: item ("," item)*\nitem: /[0-9]+/',
    "start: a\na: b\nb: a", 'start: "x"~3..5', "start: missing", 'start: %json {"type":"object"}', "start: /(/",
    'start: "a"{1,1000}', "start: start start |", "%import common.WS\nstart: WS", "start[max_tokens=3]: /.*/",
    "start[temperature=1]: /a/", "", "\n\n\n", "start:", "start: @special", "start: <|end|>", "start: %regex {}",
    'root ::= "a" | "b"', "root ::= item+\nitem ::= [a-z]", "root ::= root", 'root ::= "a"{3,9}', "root ::= [^", "::=",
    "start: %json {", 'start: %json {"$ref":"#"}', "?start: a\na: /a/ // comment", "start: A & B\nA: /a/\nB: /b/",
)  # fmt: skip


class Grammars:
    """Draws them; with `explosive`, now and then one that unbounded work would be spent on."""

    def __init__(self, rng: Rng, explosive: float) -> None:
        self.rng = rng
        self.explosive = explosive

    def any(self) -> dict[str, Any]:
        """One request field, or two that exclude each other."""
        fields: dict[str, Any] = {}
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            fields.update(weighted(self.rng, self._kinds())())
        return fields

    def _kinds(self) -> tuple[tuple[int, Callable[[], dict[str, Any]]], ...]:
        rng = self.rng
        return (
            (4, lambda: {"response_format": {"type": "json_schema", "json_schema": self._named()}}),
            (1, lambda: {"response_format": {"type": rng.choice(("json_object", "text", "xml"))}}),
            (3, lambda: {"structured_outputs": {"json": self.schema()}}),
            (2, lambda: {"structured_outputs": {"regex": self.regex(), **self._spacing()}}),
            (2, lambda: {"structured_outputs": {"choice": self.choices(), **self._spacing()}}),
            (2, lambda: {"structured_outputs": {"grammar": self.lark()}}),
            (1, lambda: {"structured_outputs": {"json_object": True, **self._spacing()}}),
            (1, lambda: {"structured_outputs": {"json": self.schema(), "regex": self.regex()}}),
            (1, lambda: {"guided_json": self.schema()}),
            (1, lambda: {"guided_regex": self.regex()}),
            (1, lambda: {"guided_choice": self.choices()}),
            (1, lambda: {"guided_grammar": self.lark()}),
        )

    def _named(self) -> dict[str, Any]:
        return {"name": self.rng.choice(("answer", "", "x" * 100)), "schema": self.schema(), "strict": True}

    def _spacing(self) -> dict[str, Any]:
        given = {"disable_any_whitespace": True, "whitespace_pattern": self.rng.choice((" ?", "\\s{0,2}", "(", "x*"))}
        return dict(self.rng.sample(sorted(given.items()), self.rng.choice((0, 0, 1, 2))))

    def _explodes(self) -> bool:
        return self.rng.random() < self.explosive

    def _count(self) -> int:
        return self.rng.choice(HUGE) if self._explodes() else self.rng.choice(LIMITS)

    def regex(self) -> str:
        if self._explodes():
            depth = self.rng.choice((100, 1000, 10_000))
            return self.rng.choice(
                ("(" * depth + "a" + ")" * depth, "|".join(["ab"] * depth), f"(a{{1000}}){{{depth}}}")
            )
        return "".join(self.rng.choice(REGEXES) for _ in range(self.rng.choice((1, 1, 1, 2, 3))))

    def choices(self) -> list[Any]:
        if self._explodes():
            return long_list(self.rng) if self.rng.random() < 0.5 else [f"c{i}" for i in range(20_000)]
        return [self.rng.choice(("yes", "no", odd_text(self.rng))) for _ in range(self.rng.choice((1, 2, 5, 50)))]

    def lark(self) -> str:
        if self._explodes():
            count = self.rng.choice((100, 1000, 5000))
            chain = "\n".join(f"r{i}: r{i + 1}" for i in range(count))
            return self.rng.choice((f'start: r0\n{chain}\nr{count}: "a"', "\n" * count * 4, "start: " + '"a" ' * count))
        return self.rng.choice(LARKS)

    def schema(self, depth: int = 0) -> dict[str, Any]:
        if not depth and self._explodes():
            return self._chain()
        drawn = weighted(self.rng, self._schemas(depth))()
        if self.rng.random() < 0.05:
            drawn[self.rng.choice(sorted(drawn) or ["type"])] = odd(self.rng, self.explosive)
        return drawn

    def _chain(self) -> dict[str, Any]:
        """Definitions that refer to each other, some thousand times."""
        count = self.rng.choice((50, 500, 2000, 5000))
        links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
        return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{count}": {"type": "integer"}}}

    def _schemas(self, depth: int) -> tuple[tuple[int, Callable[[], dict[str, Any]]], ...]:
        inner = 0 if depth > 2 else 1
        rng = self.rng
        return (
            (4 * inner, lambda: self._object(depth)),
            (2 * inner, lambda: self._array(depth)),
            (3, self._string),
            (3, self._number),
            (2, lambda: {"enum": [rng.choice((1, "a", None, True, [1], {"a": 1})) for _ in range(rng.randint(0, 4))]}),
            (1, lambda: {"const": rng.choice((1, "é", None, {"a": [1]}))}),
            (1, lambda: {"type": rng.choice(("boolean", "null", "any", ["string", "null"]))}),
            (inner, lambda: {rng.choice(("anyOf", "oneOf", "allOf")): [self.schema(depth + 1) for _ in range(2)]}),
            (1, lambda: {"$ref": rng.choice(("#", "#/$defs/missing", "http://127.0.0.1/x", "#/properties/a"))}),
            (inner, lambda: {"not": self.schema(depth + 1)}),
            (1, dict),
        )

    def _object(self, depth: int) -> dict[str, Any]:
        names = self.rng.sample(("a", "b", "name", "é", "", "$ref"), self.rng.randint(0, 4))
        drawn: dict[str, Any] = {"type": "object", "properties": {name: self.schema(depth + 1) for name in names}}
        options = {
            "required": [*names[:2], *self.rng.choice(([], ["unknown"]))],
            "additionalProperties": self.rng.choice((False, True, {"type": "integer"})),
            "minProperties": self._count(),
            "maxProperties": self._count(),
            "patternProperties": {self.rng.choice(REGEXES): {"type": "string"}},
            "$defs": {"x": self.schema(depth + 1)},
        }
        return drawn | self._some(options)

    def _array(self, depth: int) -> dict[str, Any]:
        options = {
            "minItems": self._count(),
            "maxItems": self._count(),
            "uniqueItems": True,
            "prefixItems": [self.schema(depth + 1)],
            "contains": {"type": "integer"},
        }
        return {"type": "array", "items": self.schema(depth + 1), **self._some(options)}

    def _string(self) -> dict[str, Any]:
        options = {
            "minLength": self._count(),
            "maxLength": self._count(),
            "pattern": self.regex(),
            "format": self.rng.choice(FORMATS),
        }
        return {"type": "string", **self._some(options)}

    def _number(self) -> dict[str, Any]:
        options = {
            "minimum": self.rng.choice((-1, 0, 0.5, 10**20)),
            "maximum": self.rng.choice((-1, 9, 1e308)),
            "exclusiveMinimum": self.rng.choice((0, True)),
            "multipleOf": self.rng.choice((2, 0.1, 0, -1, 10**9 + 7)),
        }
        return {"type": self.rng.choice(("integer", "number")), **self._some(options)}

    def _some(self, options: dict[str, Any]) -> dict[str, Any]:
        return dict(self.rng.sample(list(options.items()), self.rng.choice((0, 0, 1, 1, 2))))
