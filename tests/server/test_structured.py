"""Structured outputs over HTTP: every form that clients send, and what is refused of them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from typing import Any

import jsonschema_rs
import pytest

from motet.engines.grammar_process import GrammarUnavailable
from motet.engines.grammars import ROOM
from motet.server.shapes.answers import ErrorBody
from tests.server.conftest import World
from tests.server.streams import chunks_of

CHAT: dict[str, Any] = {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200}
TEXT: dict[str, Any] = {"model": "large", "prompt": "Hi", "max_tokens": 200}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"town": {"enum": ["Ay", "Bree"]}, "year": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["town", "year"],
    "additionalProperties": False,
}
NAMED = {"name": "birth", "schema": SCHEMA}
TIGHT = {"disable_any_whitespace": True}
LARK = 'start: greeting ", " name\ngreeting: "Hi" | "Hello"\nname: /[A-Z][a-z]{1,4}/'
GBNF = 'root ::= ("Hi" | "Hello") ", " [A-Z] [a-z] [a-z]'


def fits(text: str) -> bool:
    return jsonschema_rs.is_valid(SCHEMA, json.loads(text))


def greets(text: str) -> bool:
    return re.fullmatch("(Hi|Hello), [A-Z][a-z]{1,4}", text) is not None


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def chosen(text: str) -> bool:
    return text in ("yes", "no", 'it "depends"\n', "é")


CHOICE = ["yes", "no", 'it "depends"\n', "é", "yes"]
FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_object"}, "structured_outputs": TIGHT}, is_object),
    ({"response_format": {"type": "json_schema", "json_schema": NAMED}, "structured_outputs": TIGHT}, fits),
    ({"response_format": {"type": "json_schema", "json_schema": NAMED | {"strict": True, "description": "x"}}}, fits),
    ({"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA} | TIGHT}, fits),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "whitespace_pattern": " ?"}}, fits),
    ({"structured_outputs": {"json_object": True, "json": None} | TIGHT}, is_object),
    ({"structured_outputs": {"regex": "^(Hi|Hello), [A-Z][a-z]{1,4}$"}}, greets),
    ({"structured_outputs": {"choice": CHOICE}}, chosen),
    ({"structured_outputs": {"grammar": LARK}}, greets),
    ({"structured_outputs": {"grammar": GBNF}}, greets),
    ({"structured_outputs": {}, "guided_json": SCHEMA}, fits),
    ({"guided_json": json.dumps(SCHEMA)}, fits),
    ({"guided_regex": "(Hi|Hello), [A-Z][a-z]{1,4}"}, greets),
    ({"guided_choice": CHOICE}, chosen),
    ({"guided_grammar": LARK, "guided_decoding_backend": "guidance"}, greets),
]


@pytest.mark.parametrize(("form", "holds"), FORMS)
async def test_every_form(world: World, form: dict[str, Any], holds: Any) -> None:
    """In both endpoints, of all choices, and behind a composition too."""
    if holds is is_object:
        world.script("large", '{"a":[1,{"b":"c"}]}')  # what the toy model says of itself is long
    bodies = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT | {"model": "large-proxy", "n": 3})]
    for path, good in bodies:
        response = await world.post(path, **{"seed": 1} | good | form)
        assert response.status_code == 200, response.text
        for choice in response.json()["choices"]:
            assert choice["finish_reason"] == "stop"
            assert holds(choice["message"]["content"] if "message" in choice else choice["text"])


async def test_answers_that_are_cut_off_begin_what_was_asked(world: World) -> None:
    body = {"response_format": {"type": "json_schema", "json_schema": NAMED}, "structured_outputs": TIGHT}
    answer = (await world.post("/v1/completions", **TEXT | body | {"max_tokens": 8})).json()["choices"][0]
    assert (answer["text"], answer["finish_reason"]) == ('{"town":', "length")


async def test_streams_say_what_whole_answers_say(world: World) -> None:
    body = CHAT | {"guided_json": SCHEMA, "structured_outputs": TIGHT, "n": 2, "seed": 3, "logprobs": True}
    whole = [
        choice["message"]["content"] for choice in (await world.post("/v1/chat/completions", **body)).json()["choices"]
    ]
    streamed = ["", ""]
    for chunk in chunks_of((await world.post("/v1/chat/completions", **body, stream=True)).text):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == whole
    assert all(map(fits, whole))


async def test_the_prompt_that_is_scored_is_no_answer(world: World) -> None:
    body = TEXT | {"prompt": "What?", "echo": True, "logprobs": 1, "guided_choice": ["no"]}
    choice = (await world.post("/v1/completions", **body)).json()["choices"][0]
    assert choice["text"] == "What?no"


async def test_stop_strings_and_bad_words_hold_beside_a_grammar(world: World) -> None:
    body = TEXT | {"structured_outputs": {"regex": "[a-c]+;[a-c]+"}, "stop": ";", "bad_words": ["a"], "temperature": 0}
    choice = (await world.post("/v1/completions", **body)).json()["choices"][0]
    assert choice["finish_reason"] in ("stop", "length")
    assert ";" not in choice["text"]


async def test_comparisons_hold_all_candidates_to_it(world: World) -> None:
    body = {"messages": CHAT["messages"], "candidates": ["large", "large-proxy"], "max_tokens": 100}
    response = await world.post("/v1/compare", **body, guided_json=SCHEMA, structured_outputs=TIGHT)
    texts = [entry["choices"][0]["message"]["content"] for entry in response.json()["candidates"]]
    assert len(texts) == 2
    assert all(map(fits, texts))


async def test_a_long_list_of_choices(world: World) -> None:
    names = [f"item {number * 7919 % 10007} of many" for number in range(5000)]
    answer = await world.post("/v1/completions", **TEXT, guided_choice=names)
    assert answer.json()["choices"][0]["text"] in names


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, None, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": NAMED | {"lang": "py"}}}, None, "json_schema.lang"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema", "unknown field"),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "response_format", "'json_schema'"),
    ({"response_format": {}}, "response_format", "type"),
    ({"response_format": "json"}, "response_format", "dictionary"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objct"}}}},
        "response_format.json_schema.schema",
        "schema: Invalid type: objct",
    ),
    ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs.json", "Unimplemented keys"),
    ({"structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}}, "structured_outputs.json", "not present"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "no JSON"),
    ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json", "JSON object"),
    ({"structured_outputs": {"regex": "a(b"}}, "structured_outputs.regex", "unclosed group"),
    ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs.regex", "look-around"),
    ({"structured_outputs": {"regex": "a\\"}}, "structured_outputs.regex", "inside of an escape"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
    ({"structured_outputs": {"choice": "yes"}}, "structured_outputs.choice", "valid list"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs.grammar", "unknown name"),
    ({"structured_outputs": {"grammar": 'root ::= ("a"'}}, "structured_outputs.grammar", "neither Lark nor GBNF"),
    ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar", "No 'root' rule"),
    (
        {"structured_outputs": {"grammar": "start: a\na[temperature=0.5]: /.*/"}},
        "structured_outputs.grammar",
        "temperature",
    ),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.regex", "exclude each other"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "structured_outputs.regex", "exclude each other"),
    (
        {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
        "guided_choice",
        "'guided_choice' and 'response_format' exclude",
    ),
    ({"structured_outputs": {"regxe": "a"}}, "structured_outputs.regxe", "Did you mean 'regex'"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "unknown field"),
    ({"structured_outputs": TIGHT}, "structured_outputs", "is missing"),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "("}}, "structured_outputs.json", "regex"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "structured_outputs.whitespace_pattern"),
]


@pytest.mark.parametrize(("change", "param", "said"), BAD)
@pytest.mark.parametrize(("path", "good"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_refusals(
    world: World, path: str, good: dict[str, Any], change: dict[str, Any], param: str | None, said: str
) -> None:
    response = await world.post(path, **good | change)
    error = ErrorBody.model_validate(response.json()).error
    assert response.status_code == 400
    assert param is None or error.param == param
    assert said in error.message
    assert len(error.message) < 1000
    assert not world.engine.requests
    assert world.service.admission.taken == 0


async def test_nesting_without_end_is_refused(world: World) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(150):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    for text in (schema, json.dumps(schema), '{"a":' * 100000 + "1" + "}" * 100000):
        response = await world.post("/v1/completions", **TEXT, guided_json=text)
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("guided_json")


def chain(length: int) -> dict[str, Any]:
    defs = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(length)}
    return {"$defs": defs | {f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"}


ANCHORS = {f"d{i}": {"$anchor": f"a{i}", "$ref": f"#a{i + 1}"} for i in range(4000)}
EXPLOSIVE: list[tuple[str, Any, str]] = [  # each ended the server, filled its memory or held it up for seconds
    ("guided_json", chain(4000), "$refs in a row"),
    ("guided_json", json.dumps(chain(4000)), "$refs in a row"),
    ("guided_json", {"$defs": ANCHORS, "$ref": "#a0"}, "too deep into each other"),
    ("guided_json", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}, "1,000,000,000 minItems at #"),
    ("guided_json", {"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "2 s to compile"),
    ("guided_grammar", "".join(f"r{i}: r{i + 1}\n" for i in range(4000)) + 'r4000: "a"\nstart: r0', "rules in a row"),
    ("guided_grammar", "\n" * 20000, "No 'root' rule"),
    ("guided_grammar", "\n" * 600_000, "at most 500000"),
    ("guided_choice", ["a"] * 200_000, "at most 20000"),
    ("guided_choice", ["a" * 600_000], "500,000 are allowed"),
    ("guided_regex", "a{1000001}", "1,000,001 repetitions"),
    ("guided_regex", "(" * 100_000, "regex"),
]


@pytest.mark.parametrize(("field", "value", "said"), EXPLOSIVE)
async def test_explosive_grammars_are_refused_and_stop_nobody(world: World, field: str, value: Any, said: str) -> None:
    """The probes answer meanwhile, and so does the next request."""
    asked = asyncio.create_task(world.post("/v1/completions", **TEXT, **{field: value}))
    while not asked.done():
        assert (await world.client.get("/v1/models")).status_code == 200
        await asyncio.sleep(0.01)
    error = ErrorBody.model_validate((await asked).json()).error
    assert (asked.result().status_code, error.param) == (400, field)
    assert said in error.message
    assert len(error.message) < 500
    good = await world.post("/v1/completions", **TEXT, guided_choice=["yes"])
    assert good.json()["choices"][0]["text"] == "yes"
    assert world.service.admission.taken == 0


async def test_without_a_process_to_compile_in_grammars_wait_for_better_times(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise GrammarUnavailable("the process that compiles grammars does not start: no memory")

    monkeypatch.setattr(ROOM.processes, "check", fail)
    response = await world.post("/v1/completions", **TEXT, guided_regex="a")
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["error"]["code"] == "grammars_unavailable"
    assert (await world.post("/v1/completions", **TEXT)).status_code == 200


@pytest.mark.parametrize("field", ["response_format", "structured_outputs", "guided_json"])
async def test_single_candidates_and_scores_take_none(world: World, field: str) -> None:
    asked = {field: {"type": "json_object"}}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/compare", {"messages": CHAT["messages"], "candidates": [{"model": "large"} | asked]}),
        ("/v1/score", {"model": "large", "prompt": "a", "continuations": ["b"]} | asked),
    ]
    for path, body in bodies:
        response = await world.post(path, **body)
        assert response.status_code == 400
        where = "candidates.0." if "candidates" in body else ""
        assert response.json()["error"]["param"] == where + field


async def test_models_without_an_end_cannot_be_held_to_a_grammar(world: World) -> None:
    from dataclasses import replace

    members = dict(world.service.registry.members)
    members["large"] = replace(members["large"], info=replace(members["large"].info, eos_token_ids=()))
    world.service.registry.members = members
    response = await world.post("/v1/completions", **TEXT, guided_regex="a")
    assert response.status_code == 400
    assert "no end-of-sequence token" in response.json()["error"]["message"]


def test_the_library_is_imported_when_it_is_first_needed() -> None:
    script = """
import sys
import motet.server.app
assert "llguidance" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


PATTERNS = r"""start: "/" NUMBER "a/b" /[\d_]/ // a comment's /, and its \d "
NUMBER: /\d{6}[^\D]/ # another " /
%ignore /\\\d\//
"""


@pytest.mark.parametrize(
    ("asked", "pattern"), [({"regex": r"\d{8}[^\D]"}, "[0-9]{9}"), ({"grammar": PATTERNS}, r"(\\[0-9]/)*/[^a]*a/b.*")]
)
async def test_a_digit_is_one_of_ten(world: World, asked: dict[str, Any], pattern: str) -> None:
    """As in a JSON schema's `pattern`, and as `int()` of most languages reads it."""
    for seed in range(8):
        body = TEXT | {"seed": seed, "temperature": 2.0, "structured_outputs": asked}
        choice = (await world.post("/v1/completions", **body)).json()["choices"][0]
        assert re.fullmatch(pattern, choice["text"], re.DOTALL), choice["text"]
        assert not [sign for sign in choice["text"] if sign.isdigit() and not sign.isascii()]


INTEGER = {"type": "integer"}
INTEGERS: list[tuple[Any, str]] = [
    (INTEGER, "7" * 18),
    ({**INTEGER, "minimum": 1}, "7" * 18),
    ({**INTEGER, "exclusiveMaximum": 800}, "777"),
    ({**INTEGER, "maximum": 10**19}, "7" * 19),  # the schema's own word
    ({"type": ["integer", "null"]}, "7" * 18),
    ({"anyOf": [INTEGER, {"type": "null"}]}, "7" * 18),
    ({"enum": [7, 7777]}, "7777"),
    ({"$ref": "#/$defs/n", "$defs": {"n": INTEGER}}, "7" * 18),
    ({"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 1}, f"[{'7' * 18}]"),
    (
        {"type": "object", "properties": {"n": INTEGER}, "required": ["n"], "additionalProperties": False},
        f'{{"n": {"7" * 18}}}',
    ),
]


@pytest.mark.parametrize(("schema", "said"), INTEGERS)
async def test_a_model_that_loves_digits_comes_to_an_end(world: World, schema: dict[str, Any], said: str) -> None:
    world.script("large", said[: said.index("7")] + "7" * 60)
    body = {"model": "large", "prompt": "x", "max_tokens": 60, "temperature": 0, "guided_json": schema}
    choice = (await world.post("/v1/completions", **body)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (said, "stop")
