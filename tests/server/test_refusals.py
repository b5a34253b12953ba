"""Bad input: every refusal is a 4xx in the documented shape and says what would be right."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from motet.server.shapes.answers import ErrorBody
from tests.server.conftest import MakeWorld, World

CHAT: dict[str, Any] = {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "large", "prompt": "Hi", "max_tokens": 2}
JSON = {"content-type": "application/json"}
DOLA: dict[str, Any] = {"strategy": "layer_contrast"}
PROXY = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "small"}


async def refusal(world: World, path: str, body: dict[str, Any]) -> tuple[int, str | None, str]:
    response = await world.post(path, **body)
    error = ErrorBody.model_validate(response.json()).error
    assert world.service.admission.taken == 0
    return response.status_code, error.param, error.message


@pytest.mark.parametrize(
    ("change", "status", "param", "said"),
    [
        ({"model": "lagre"}, 404, "model", "Did you mean 'large'"),
        ({"model": None}, 400, "model", "missing"),
        ({"composition": {"strategy": "proxy_tunning"}}, 400, "composition.strategy", "did you mean 'proxy_tuning'"),
        ({"composition": PROXY | {"alhpa": 1}}, 400, "composition.alhpa", "did you mean 'alpha'"),
        ({"composition": PROXY | {"expert": "exprt"}}, 400, "composition.expert", "did you mean 'expert'"),
        ({"composition": PROXY | {"alpha": 1e9}}, 400, "composition.alpha", "less than or equal to 100"),
        ({"composition": PROXY | {"alpha": "1"}}, 400, "composition.alpha", "valid number"),
        ({"composition": PROXY | {"antiexpert": "stranger"}}, 400, "composition", "vocabularies differ"),
        ({"composition": "large-proxy"}, 400, "composition", "dictionary"),
        ({"composition": PROXY, "model": "large-proxy"}, 400, "composition", "is a composition already"),
        ({"composition": PROXY, "guidance_scale": 2.0}, 400, "guidance_scale", "exclude"),
        ({"guidance_scale": "high"}, 400, "guidance_scale", "valid number"),
        ({"composition": {"strategy": "experts", "expert": "expert"}}, 400, "composition", "does not run"),
        ({"composition": DOLA | {"layers": [2, 13]}}, 400, "composition.layers.1", "0 (its embeddings) to 12 (all"),
        ({"composition": DOLA | {"layers": [99]}}, 400, "composition.layers.0", "'large' has no layer 99"),
        ({"composition": DOLA | {"layers": [-1]}}, 400, "composition.layers.0", "greater than or equal to 0"),
        ({"composition": DOLA | {"layers": list[int]()}}, 400, "composition.layers", "at least 1 entry"),
        ({"composition": DOLA | {"layers": [1], "bucket": "low"}}, 400, "composition", "exclude each other"),
        ({"composition": DOLA | {"bucket": "hihg"}}, 400, "composition.bucket", "did you mean 'high'"),
        ({"composition": DOLA | {"select": "entrpy"}}, 400, "composition.select", "did you mean 'entropy'"),
        ({"composition": DOLA | {"layer": 3}}, 400, "composition.layer", "did you mean 'layers'"),
        (
            {"composition": {"compose": [DOLA | {"layers": [13]}]}},
            400,
            "composition.compose.0.layers.0",
            "nearest is 12",
        ),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": "warm"}, 400, "temperature", "valid number"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"top_p": 1.1}, 400, "top_p", "less than or equal to 1"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"n": True}, 400, "n", "valid integer"),
        ({"seed": 2**70}, 400, "seed", "less than or equal"),
        ({"max_tokens": -2}, 400, "max_tokens", "greater than or equal to -1"),
        ({"max_tokens": 2.5}, 400, "max_tokens", "valid integer"),
        ({"min_tokens": 3}, 400, "min_tokens", "more than 'max_tokens'"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias", "no token id"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias", "not in the vocabulary"),
        ({"logit_bias": {"1": 101}}, 400, "logit_bias.1", "less than or equal to 100"),
        ({"stop_token_ids": [5000]}, 400, "stop_token_ids", "5000"),
        ({"allowed_token_ids": []}, 400, "allowed_token_ids", "at least 1"),
        ({"prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs", "cannot be streamed"),
        ({"tools": [{"type": "function"}]}, 400, None, "tools"),
        ({"use_beam_search": True}, 400, "use_beam_search", "not supported"),
        ({"best_of": 3}, 400, "best_of", "not supported"),
        ({"trace": {"top": 21}}, 400, "trace.top", "less than or equal to 20"),
        ({"trace": {"tpo": 2}}, 400, "trace.tpo", "Did you mean 'top'"),
        ({"truncate_prompt_tokens": 0}, 400, None, "leaves nothing"),
    ],
)
@pytest.mark.parametrize(("path", "good"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_fields(
    world: World, path: str, good: dict[str, Any], change: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    got = await refusal(world, path, good | change)
    assert got[0] == status
    assert param is None or got[1] == param
    assert said in got[2]
    assert not world.engine.requests


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "'text'"),
        ({"messages": "Hi"}, "messages", "valid list"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stop": [""]}, "stop.0", "at least 1"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"chat_template": "{{ x }}"}, "chat_template", "no code"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "cannot set tokenize"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "messages", "exclude"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "maximum context length"),
        ({"echo": True}, "echo", "not supported"),
    ],
)
async def test_chat_fields(world: World, change: dict[str, Any], param: str, said: str) -> None:
    body = CHAT | {"max_tokens": None} | change
    status, named, message = await refusal(world, "/v1/chat/completions", body)
    assert (status, named) == (400, param)
    assert said in message


PROMPTS: list[tuple[Any, str]] = [
    ([1, "a"], "valid"),
    ([-1], "greater than or equal to 0"),
    ([100000], "not in the vocabulary"),
    (None, "valid"),
    ("x" * 300, "maximum context length"),
]


@pytest.mark.parametrize(("prompt", "said"), PROMPTS)
async def test_prompts(world: World, prompt: Any, said: str) -> None:
    status, param, message = await refusal(world, "/v1/completions", TEXT | {"prompt": prompt})
    assert status == 400
    assert (param or "").startswith("prompt")
    assert said in message


async def test_halves_of_characters_are_no_text(world: World) -> None:
    """JSON can escape a lone surrogate, which no tokenizer can read."""
    for body in (
        r'{"model": "large", "prompt": "\ud800"}',
        r'{"model": "large", "prompt": ["x", "\udfff"]}',
        r'{"model": "large", "prompt": "x", "composition": {"strategy": "\ud800"}}',
        r'{"model": "\ud800", "prompt": "x"}',
        r'{"model": "large", "prompt": "x", "\ud800": 1}',
    ):
        response = await world.client.post("/v1/completions", content=body, headers=JSON)
        assert response.status_code == 400
        assert "surrogate" in response.json()["error"]["message"]
    body = r'{"model": "large", "prompt": "\ud83c\udfbc", "max_tokens": 1}'
    response = await world.client.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 200


async def test_prompt_too_long_has_the_numbers(world: World) -> None:
    response = await world.post("/v1/completions", **TEXT | {"prompt": "x" * 300})
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "256" in error["message"]
    assert "300" in error["message"]


async def test_what_can_never_fit_has_the_numbers(world: World) -> None:
    world.engine.kv_bytes_budget = 100
    response = await world.post("/v1/completions", **TEXT)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "request_too_large"
    assert "the budget is 100" in response.json()["error"]["message"]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ['"temperature": {}', '"composition": {{"strategy": "guidance", "scale": {}}}'])
async def test_numbers_have_to_be_finite(world: World, field: str, constant: str) -> None:
    body = '{"model": "large", "prompt": "Hi", ' + field.format(constant) + "}"
    response = await world.client.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert "finite" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"{", "malformed_json"), (b"", "no_json"), (b"[]", None), (b'"x"', None), (b"\xff", None), (b"[" * 100000, None)],
)
async def test_bodies_that_are_no_object(world: World, content: bytes, code: str | None) -> None:
    response = await world.client.post("/v1/completions", content=content, headers=JSON)
    assert response.status_code == 400
    error = ErrorBody.model_validate(response.json()).error
    assert code is None or error.code == code


async def test_wrong_content_type(world: World) -> None:
    response = await world.client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


async def test_compressed_bodies_are_named(world: World) -> None:
    content = gzip.compress(b'{"model": "large", "prompt": "Hi"}')
    response = await world.client.post("/v1/completions", content=content, headers={**JSON, "content-encoding": "gzip"})
    assert response.status_code == 415
    assert "'gzip'" in response.json()["error"]["message"]
    as_it_is = {**JSON, "content-encoding": "identity"}
    assert (await world.client.post("/v1/completions", json=TEXT, headers=as_it_is)).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("structured_outputs.regx", "a", "regex"),
        ("response_format.json_schema.shema", {}, "schema"),
        ("speculation.drft", "base", "draft"),
        ("trace.tops", 2, "top"),
    ],
)
async def test_unknown_fields_of_objects_name_the_nearest(world: World, field: str, value: Any, meant: str) -> None:
    *path, name = field.split(".")
    sent: dict[str, Any] = {"name": "x", name: value} if path[-1] == "json_schema" else {name: value}
    for part in reversed(path):
        sent = {part: {"type": "json_schema", **sent} if part == "response_format" else sent}
    response = await world.client.post("/v1/completions", json={**TEXT, **sent})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert f"Did you mean '{meant}'?" in error["message"]


async def test_a_defect_is_a_500_in_the_error_shape(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(_: object) -> int:
        raise KeyError("a defect")

    monkeypatch.setattr(world.engine, "check", defect)
    response = await world.client.post("/v1/completions", json=TEXT, headers={"x-request-id": "abc-3"})
    assert response.status_code == 500
    error = ErrorBody.model_validate(response.json()).error
    assert (error.type, error.code) == ("server_error", "internal_error")
    assert "a defect" not in error.message
    assert response.headers["x-request-id"] == "abc-3"
    assert world.service.admission.taken == 0


async def test_unknown_path_and_method(world: World) -> None:
    for response, status in (
        (await world.client.get("/v1/nothing"), 404),
        (await world.client.get("/v1/completions"), 405),
    ):
        assert response.status_code == status
        ErrorBody.model_validate(response.json())


async def test_body_too_large(make_world: MakeWorld) -> None:
    world = make_world(max_body_bytes=1024)
    declared = await world.post("/v1/completions", **TEXT | {"prompt": "x" * 2000})

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    counted = await world.client.post("/v1/completions", content=chunks(), headers=JSON)
    for response in (declared, counted):
        assert response.status_code == 413
        assert ErrorBody.model_validate(response.json()).error.code == "body_too_large"


async def test_bodies_of_all_requests_have_a_bound(make_world: MakeWorld) -> None:
    """Whoever fills it keeps long bodies out, short ones never; what was answered counts no more."""
    long = TEXT | {"prompt": "x" * 3, "user": "y" * 90_000}
    world = make_world(max_bodies_bytes=2 * len(httpx.Request("POST", "http://x", json=long).content) + 10)
    world.engine.gate.clear()
    waiting = [asyncio.create_task(world.post("/v1/completions", **long)) for _ in range(2)]
    while world.service.admission.taken < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    refused = await asyncio.wait_for(world.post("/v1/completions", **long), 10)  # the engine answers nobody
    error = ErrorBody.model_validate(refused.json()).error
    assert (refused.status_code, error.code, refused.headers["connection"]) == (503, "too_many_bodies", "close")
    assert int(refused.headers["retry-after"]) >= 1
    short = asyncio.create_task(world.post("/v1/completions", **TEXT))
    while world.service.admission.taken < 3 and not short.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    world.engine.gate.set()
    assert [(await task).status_code for task in (*waiting, short)] == [200] * 3
    assert (await world.post("/v1/completions", **long)).status_code == 200


async def test_ignored_fields_are_logged_by_name_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        response = await world.post("/v1/completions", **TEXT, user="me", nonsense="secret words", tools=None)
    assert response.status_code == 200
    assert "nonsense" in caplog.text
    assert "secret words" not in caplog.text


async def test_prompts_are_never_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine.fail_after = 1
    with caplog.at_level("DEBUG", logger="motet"):
        await world.post("/v1/completions", model="large", prompt="my secret", ignore_eos=True)
        await world.post("/v1/completions", model="large", prompt="my secret", temperature="x")
    assert "engine_error" in caplog.text or "failed" in caplog.text
    assert "my secret" not in caplog.text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/embeddings", "GET /docs"),
        ("/chat/completions", "Did you mean '/v1/chat/completions'?"),
        ("/v1/chat/completion", "Did you mean '/v1/chat/completions'?"),
        ("/api/generate", "Use /v1/completions."),
    ],
)
async def test_endpoints_that_are_not_served_say_what_is(world: World, path: str, said: str) -> None:
    answer = await world.post(path, model="large", input="Hi")
    assert answer.status_code == 404
    error = ErrorBody.model_validate(answer.json()).error
    assert error.code == "unsupported_endpoint"
    assert said in error.message
