"""What a request may hold at most: counted before anything is built from it, refused in a short text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from motet.composers.errors import MAX_SHOWN
from motet.composers.roles import MAX_NAME
from motet.server.http import bodies
from motet.server.http.bodies import MAX_CONTAINERS, MAX_NAMES, MAX_TEXTS, MAX_VALUES, parse
from motet.server.http.errors import MAX_MESSAGE, ApiError, error_body
from motet.server.shapes.answers import ErrorBody
from motet.server.shapes.requests import MAX_TOKENIZED
from tests.server.conftest import World

TEXT: dict[str, Any] = {"model": "large", "prompt": "Hi", "max_tokens": 2}
JSON = {"content-type": "application/json"}


async def said(world: World, path: str, content: bytes) -> ErrorBody:
    response = await world.client.post(path, content=content, headers=JSON)
    assert response.status_code in (400, 404)
    assert len(response.content) <= 2048
    assert not world.engine.requests
    assert world.service.admission.taken == 0
    return ErrorBody.model_validate(response.json())


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"[" + b"{}," * MAX_CONTAINERS + b"{}]", "lists and objects"),
        (b'{"a":' * (MAX_NAMES + 1) + b"1" + b"}" * (MAX_NAMES + 1), "names in objects"),
        (b"[" + b"1," * MAX_VALUES + b"1]", "values"),
        (b"[" + b'",",' * (MAX_TEXTS // 2) + b'"\\",\\\\",' * (MAX_TEXTS // 2) + b'""]', "texts"),
    ],
)
def test_bodies_are_counted_before_they_are_parsed(body: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "from_json", lambda: pytest.fail("parsed"))
    with pytest.raises(ApiError, match=f"{kind}, at most") as refusal:
        parse(body)
    assert refusal.value.status_code == 400


FULL: list[Any] = [
    list(range(MAX_VALUES - 1)),
    "[{,:" * (MAX_VALUES + 1),  # one text
    '"' * (2 * MAX_TEXTS + 2),
    ['\\",[' * MAX_CONTAINERS, "\\" * MAX_VALUES, {}],
    [{}] * (MAX_CONTAINERS - 2),
    {str(i): i for i in range(MAX_NAMES)},
    ["x"] * (MAX_TEXTS - 1),
]


@pytest.mark.parametrize("value", FULL)
def test_what_is_below_the_bounds_is_read(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


@pytest.mark.parametrize("depth", [1, 100, 190, 320, 5000, 20_000])
@pytest.mark.parametrize(
    "around",
    ['{{"model": "large", "prompt": {}}}', '{{"model": "large", "prompt": "x", "composition": {{"strategy": {}}}}}',
     '{{"model": "large", "prompt": "x", "guided_json": {{"a": {}}}, "guided_regex": "a"}}'],
)  # fmt: skip
async def test_nesting(world: World, around: str, depth: int) -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        deep = opening * depth + "1" + closing * depth
        if not around.startswith('{{"model": "large", "prompt": {}') or depth > 1:
            await said(world, "/v1/completions", around.format(deep).encode())


@pytest.mark.parametrize(
    "field", ["max_tokens", "min_tokens", "top_k", "seed", "n", "logprobs", "truncate_prompt_tokens"]
)
@pytest.mark.parametrize("digits", [25, 4299, 4300, 4301, 100_000])
async def test_numbers_without_end(world: World, field: str, digits: int) -> None:
    body = json.dumps(TEXT)[:-1] + f', "{field}": ' + "9" * digits + "}"
    await said(world, "/v1/completions", body.encode())


MANY = ["a"] * 20_000
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"stop_token_ids": MANY}),
    ("/v1/completions", {"stop_token_ids": [1] * 4097}),
    ("/v1/completions", {"allowed_token_ids": MANY}),
    ("/v1/completions", {"allowed_token_ids": [1] * 140_000}),
    ("/v1/completions", {"bad_words": [1] * 20_000}),
    ("/v1/completions", {"bad_words": MANY}),
    ("/v1/completions", {"bad_words": ["x" * 257]}),
    ("/v1/completions", {"stop": MANY}),
    ("/v1/completions", {"prompt": [*MANY, 1]}),
    ("/v1/completions", {"prompt": [["a"]] * 20_000}),
    ("/v1/completions", {"prompt": [[1]] * 5000}),
    ("/v1/completions", {"logit_bias": {str(i): "a" for i in range(20_000)}}),
    ("/v1/completions", {"logit_bias": {str(i): 1 for i in range(20_000)}}),
    ("/v1/completions", {"logit_bias": {"x" * 10_000: 1}}),
    ("/v1/completions", {"model": "m" * 100_000}),
    ("/v1/completions", {"model": "m" * 500}),
    ("/v1/completions", {"best_of": "b" * 100_000}),
    ("/v1/completions", {"trace": dict.fromkeys(map(str, range(20_000)), 1)}),
    ("/v1/completions", {"trace": {"n" * 100_000: 1}}),
    ("/v1/completions", {"guided_choice": [1] * 15_000}),
    ("/v1/completions", {"composition": {"strategy": "s" * 100_000}}),
    ("/v1/completions", {"composition": {"strategy": "product", "members": list(range(20_000))}}),
    ("/v1/completions", {"composition": {"strategy": "product", **dict.fromkeys(map(str, range(20_000)), 1)}}),
    ("/v1/completions", {"composition": {"strategy": "product", "n" * 100_000: 1}}),
    ("/v1/completions", {"composition": {"strategy": "rules", "token_offsets": {f"t{i}": "a" for i in range(20_000)}}}),
    ("/v1/completions", {"composition": {"strategy": "rules", "token_offsets": {f"tt{i}": 1 for i in range(1000)}}}),
    ("/v1/completions", {"composition": {"strategy": "product", "members": [{"model": "m" * 100_000}]}}),
    ("/v1/chat/completions", {"prompt": None, "messages": [{"role": 1}] * 4000}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 5000}),
    ("/v1/chat/completions", {"messages": [{"role": "r" * 100_000, "content": "x"}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "x"}] * 5000}]}),
    ("/v1/compare", {"candidates": list(range(20_000))}),
    ("/v1/score", {"continuations": [{}] * 20_000}),
    ("/detokenize", {"tokens": MANY}),
]


@pytest.mark.parametrize(("path", "change"), WRONG)
async def test_refusals_are_short(world: World, path: str, change: dict[str, Any]) -> None:
    error = (await said(world, path, json.dumps(TEXT | change).encode())).error
    assert len(error.message) <= MAX_MESSAGE
    assert len(error.param or "") <= 200
    assert not any(letter * 201 in error.message for letter in "mbnsrx")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
async def test_a_name_is_repeated_in_part(world: World, path: str) -> None:
    """As it is written out: twice as many letters where each is escaped."""
    body = {"model": "\n" * MAX_NAME, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
    body.pop("messages" if path.endswith("completions") else "prompt")
    response = await world.client.post(path, json=body)
    assert response.status_code == 404
    assert response.json()["error"]["message"].count("\\n") <= 100


async def test_a_list_is_read_up_to_its_first_problem(world: World) -> None:
    """And lists tell how many problems there were where all are known."""
    error = (await said(world, "/v1/completions", json.dumps(TEXT | {"stop_token_ids": ["a"] * 4000}).encode())).error
    assert error.message == "stop_token_ids.0: Input should be a valid integer"
    bias = {str(i): "a" for i in range(300)}
    error = (await said(world, "/v1/completions", json.dumps(TEXT | {"logit_bias": bias}).encode())).error
    assert error.message.count("valid number") == 20
    assert error.message.endswith("and 280 more problems")


@pytest.mark.parametrize("prompt", [["a"] * 5000, [[1]] * 5000])
async def test_too_many_of_the_right_kind(world: World, prompt: list[Any]) -> None:
    """Not called wrong for what another kind of list would hold."""
    error = (await said(world, "/v1/completions", json.dumps(TEXT | {"prompt": prompt}).encode())).error
    assert error.message.startswith("prompt: List should have at most 4096 items")
    assert error.param == "prompt"


def json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("letter", ["x", "é", "🜂", "\x00", '"', "\ud800"])
def test_error_texts_end(letter: str) -> None:
    """In bytes as they are sent, whatever the letters; what fits is whole."""
    body = error_body(400, letter * 10_000, letter * 10_000)
    told = ErrorBody.model_validate(body).error
    assert MAX_MESSAGE - 8 < json_bytes(told.message) - 2 <= MAX_MESSAGE
    assert MAX_SHOWN - 8 < json_bytes(told.param) - 2 <= MAX_SHOWN
    assert json_bytes(body) <= 2048
    whole = letter * (MAX_SHOWN // (json_bytes(letter) - 2))
    assert ErrorBody.model_validate(error_body(400, whole, whole)).error.param == whole


@pytest.mark.parametrize("cut", [{"truncate_prompt_tokens": 1}, {"truncate_prompt_tokens": -1}])
async def test_a_text_that_is_cut_has_bounds_too(world: World, cut: dict[str, int]) -> None:
    """Its length is not judged by the context: 8 MB of it held a thread for seconds, and gigabytes."""
    body = TEXT | cut | {"prompt": "x" * (MAX_TOKENIZED + 1)}
    error = (await said(world, "/v1/completions", json.dumps(body).encode())).error
    assert (error.param, error.code) == ("prompt", "context_length_exceeded")
    assert "1,048,577 characters" in error.message
