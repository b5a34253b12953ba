"""Points 1 to 3 and 5: one small request that ends the server, or fills it."""

from __future__ import annotations

import json
from typing import Any

from tests.soak.points.lab import COMPLETIONS, Check, Lab, Limits, ask, complete, raw, schema, structured

BILLION = 10**9
LONG = 4000


def grammar_crash(lab: Lab) -> list[Check]:
    """Chains and nesting deeper than a compiler's stack."""
    refs: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(LONG)}
    chain = "\n".join(f"r{i}: r{i + 1}" for i in range(LONG))
    gbnf = "\n".join(f"r{i} ::= r{i + 1}" for i in range(LONG))
    nested = '{"type":"array","items":' * 300 + "{}" + "}" * 300
    either = json.loads('{"anyOf":[{"type":"null"},' * 250 + "{}" + "]}" * 250)
    return [
        lab.attack("$ref chain", [schema({"$ref": "#/$defs/d0", "$defs": {**refs, f"d{LONG}": {"type": "integer"}}})]),
        lab.attack("Lark chain", [structured(grammar=f'start: r0\n{chain}\nr{LONG}: "a"')]),
        lab.attack("GBNF chain", [structured(grammar=f'root ::= r0\n{gbnf}\nr{LONG} ::= "a"')]),
        lab.attack("schema nested 300 deep", [structured(json=nested)]),
        lab.attack("anyOf nested 250 deep", [schema(either)]),
        lab.attack("regex of brackets", [structured(regex="(" * 10_000 + "a" + ")" * 10_000)]),
        lab.attack("Lark of brackets", [structured(grammar="start: " + "(" * 10_000 + '"a"' + ")" * 10_000)]),
        lab.attack("properties nested as text", [structured(json='{"properties":{"a":' * 5000 + "{}" + "}}" * 5000)]),
    ]


def grammar_memory(lab: Lab) -> list[Check]:
    """Counts that a compiler unrolls."""
    items: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    remembered = [schema({**items, "minItems": 100_000 + i}) for i in range(12)]
    return [
        lab.attack("minItems 1e9", [schema({**items, "minItems": BILLION})]),
        lab.attack("minItems 1e7", [schema({**items, "minItems": 10**7})]),
        lab.attack("12 schemas of 100,000 items", remembered),
        lab.attack("minLength 1e9", [schema({"type": "string", "minLength": BILLION})]),
        lab.attack("minProperties 1e9", [schema({"type": "object", "minProperties": BILLION})]),
        lab.attack("regex a{1000000000}", [structured(regex="a{1000000000}")]),
        lab.attack("regex ((a{1000}){1000}){1000}", [structured(regex="((a{1000}){1000}){1000}")]),
        lab.attack('Lark "a"{1000000000}', [structured(grammar='start: "a"{1000000000}')]),
        lab.attack("Lark rule{1000000000}", [structured(grammar='start: a{1000000000}\na: "a" | a "b"')]),
        lab.attack("pattern in a schema", [schema({"type": "string", "pattern": "^(a{9999}){9999}$"})]),
        lab.attack("enum of 300,000", [schema({"enum": list(range(300_000))})]),
    ]


def error_text(lab: Lab) -> list[Check]:
    """Lists of wrong values: the refusal must not cost more than reading them."""
    words, limits = ["a"] * 20_000, Limits(answer_s=2, health_s=0.2)
    numbers = list(range(20_000))
    chat = [{"role": 1}] * 20_000
    return [
        lab.attack("stop_token_ids of texts", [complete(stop_token_ids=words)], limits),
        lab.attack("allowed_token_ids of texts", [complete(allowed_token_ids=words)], limits),
        lab.attack("bad_words of numbers", [complete(bad_words=numbers)], limits),
        lab.attack("stop of numbers", [complete(stop=numbers)], limits),
        lab.attack("prompt of mixed values", [complete(prompt=[*words, *numbers, None])], limits),
        lab.attack("prompt of lists of texts", [complete(prompt=[["a"]] * 20_000)], limits),
        lab.attack("logit_bias of texts", [complete(logit_bias={str(i): "a" for i in numbers})], limits),
        lab.attack("messages of numbers", [ask("/v1/chat/completions", model="large", messages=chat)], limits),
        lab.attack(
            "candidates of numbers", [ask("/v1/compare", model="large", prompt="a", candidates=numbers)], limits
        ),
        lab.attack(
            "continuations of objects", [ask("/v1/score", model="large", prompt="", continuations=chat)], limits
        ),
        lab.attack("tokens of texts", [ask("/detokenize", model="large", tokens=words)], limits),
        lab.attack("members of numbers", [complete(composition={"strategy": "product", "members": numbers})], limits),
        lab.attack("choices of numbers", [structured(choice=numbers)], limits),
        lab.attack("token_offsets of texts", [_offsets()], limits),
        lab.attack(
            "20,000 unknown names",
            [complete(composition={"strategy": "eft", **dict.fromkeys(words, 1), **_names()})],
            limits,
        ),
    ]


def _names() -> dict[str, int]:
    return {f"name{i}": 1 for i in range(20_000)}


def _offsets() -> Any:
    return complete(composition={"strategy": "rules", "token_offsets": {f"t{i}": "a" for i in range(20_000)}})


def own_patterns(lab: Lab) -> list[Check]:
    """Texts that a regular expression of the server's own reads again and again."""
    limits = Limits(answer_s=2)
    units = {"line ends": "\n", "spaces": " ", "tabs and ends": "\t\n", "words": "a ", "brackets": "[", "marks": "?\n"}
    texts = {name: unit * (40_000 // len(unit)) for name, unit in units.items()}
    return [
        *(lab.attack(f"grammar of {name}", [structured(grammar=text)], limits) for name, text in texts.items()),
        *(lab.attack(f"prompt of {name}", [complete(prompt=text)], limits) for name, text in texts.items()),
        lab.attack("regex of backslashes", [structured(regex="\\" * 40_001)], limits),
        lab.attack("schema as spaces", [structured(json=" " * 400_000)], limits),
        lab.attack("body of spaces", [raw(COMPLETIONS, " " * 7_000_000)], limits),
    ]
