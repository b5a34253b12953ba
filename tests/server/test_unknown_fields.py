"""Fields that the server does not have: refused where they would change the answer, else named in a header."""

from __future__ import annotations

import gc
import time
import tracemalloc
from typing import Any

import httpx
import pytest

from motet.server.http.foreign import CARRIERS, HARMLESS, MISSING, SAME
from motet.server.http.headers import IGNORED, MAX_TOKENS
from motet.server.shapes.answers import ErrorBody
from motet.server.shapes.requests import ChatCompletionRequest
from tests.server.conftest import World, listening, make_service

CHAT: dict[str, Any] = {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PROXY = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "small"}


async def refused(world: World, path: str = "/v1/chat/completions", **body: Any) -> tuple[str | None, str]:
    response = await world.post(path, **CHAT | body)
    assert response.status_code == 400, response.text
    assert not world.engine.requests
    error = ErrorBody.model_validate(response.json()).error
    assert error.code == "unsupported_parameter"
    return error.param, error.message


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"compositon": PROXY}, "Did you mean 'composition'"),
        ({"composition_": PROXY}, "Did you mean 'composition'"),
        ({"steering": {"deep": [PROXY]}}, "looks like a composition"),
        ({"extra_body": {"composition": PROXY}}, "beside 'model'"),
        ({"vllm_xargs": {"composition": "{}"}}, "beside 'model'"),
        ({"strategy": "contrastive"}, "into 'composition'"),
        ({"amateur": "small"}, "into 'composition'"),
        ({"amatuer": "small"}, "'amateur', inside of 'composition'"),
        ({"alpha": 0.5}, "into 'composition'"),
        ({"temprature": 0}, "Did you mean 'temperature'"),
        ({"topP": 0.5}, "Did you mean 'top_p'"),
        ({"maxTokens": 3}, "Did you mean 'max_tokens'"),
        ({"maxOutputTokens": 3}, "Did you mean 'max_tokens'"),
        ({"repeat_penalty": 1.1}, "Write repetition_penalty"),
        ({"repeatPenalty": 1.1}, "Did you mean 'repetition_penalty'"),
        ({"do_sample": False}, "temperature 0"),
        ({"max_new_tokens": 2}, "Write max_tokens"),
        ({"n_predict": 2}, "Write max_tokens"),
        ({"regex": "[0-9]+"}, "structured_outputs.regex"),
        ({"ebnf": 'root ::= "a"'}, "structured_outputs.grammar"),
        ({"grammar": 'root ::= "a"'}, "structured_outputs.grammar"),
        ({"json_schema": {"type": "object"}}, "response_format"),
        ({"num_beams": 4}, "Leave it out"),
        ({"no_repeat_ngram_size": 2}, "repetition_penalty"),
        ({"cfg_scale": 2.0}, "guidance_scale"),
        ({"logits_processors": ["x"]}, "no code"),
        ({"candidates": ["small"]}, "Another endpoint"),
        ({"prompt": "Hi"}, "Another endpoint"),
        ({"continuations": ["a"]}, "Another endpoint"),
        ({"enable_thinking": False}, "chat_template_kwargs"),
        ({"enableThinking": True}, "chat_template_kwargs"),
        ({"reasoning_budget": 0}, "thinking_token_budget"),
        ({"thinking_budget_tokens": 8}, "thinking_token_budget"),
        ({"response_schema": {"type": "object"}}, "response_format"),
        ({"schema": {"type": "object"}}, "response_format"),
        ({"json_mode": True}, "response_format"),
        ({"json_object": True}, "response_format"),
        ({"tool_config": {"mode": "any"}}, "tool_choice"),
        ({"adapter": "a"}, "as 'model'"),
        ({"adapters": ["a"]}, "as 'model'"),
        ({"lora_name": "a"}, "as 'model'"),
        ({"control_vector": [1.0]}, "Leave it out"),
        ({"ensemble": ["a", "b"]}, "composition"),
        ({"instructions": "Be kind."}, "role 'system'"),
        ({"input": "Hi"}, "'messages'"),
        ({"detokenize": False}, "return_token_ids"),
        ({"add_generation_promt": False}, "Did you mean 'add_generation_prompt'"),
    ],
)
async def test_what_would_change_the_answer(world: World, field: dict[str, Any], said: str) -> None:
    param, message = await refused(world, **field)
    assert param == next(iter(field))
    assert said in message


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"stream": True, "stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage"),
        ({"messages": [{"role": "user", "contents": "Hi"}]}, "messages.0.contents", "content"),
        ({"messages": [{"role": "assistant", "content": "a", "refusal": "no"}]}, "messages.0.refusal", "content"),
    ],
)
async def test_objects_in_the_body(world: World, change: dict[str, Any], param: str, said: str) -> None:
    named, message = await refused(world, **change)
    assert named == param
    assert said in message


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "Hi", "add_special_token": False}, "add_special_token"),
        ("/detokenize", {"tokens": [65], "modell": "large"}, "modell"),
        ("/v1/score", {"prompt": "Hi", "continuations": ["a"], "add_special_tokens": False}, "add_special_tokens"),
        ("/v1/score", {"prompt": "Hi", "continuations": ["a"], "tracee": False}, "tracee"),
        ("/v1/compare", {"prompt": "Hi", "candidates": ["large"], "skip_special_token": False}, "skip_special_token"),
        ("/v1/completions", {"prompt": "Hi", "skip_special_token": False}, "skip_special_token"),
        ("/v1/completions", {"prompt": "Hi", "instructions": "x"}, "instructions"),
        ("/v1/responses", {"input": "Hi", "parallel_tool_call": False}, "parallel_tool_call"),
        ("/v1/responses", {"input": "Hi", "max_tool_calls": 2}, "max_tool_calls"),
    ],
)
async def test_every_endpoint_knows_its_own_fields(world: World, path: str, body: dict[str, Any], param: str) -> None:
    answer = await world.post(path, model="large", **body)
    assert answer.status_code == 400, answer.text
    error = ErrorBody.model_validate(answer.json()).error
    assert (error.param, error.code) == (param, "unsupported_parameter")


async def test_candidates_have_no_sampling_of_their_own(world: World) -> None:
    candidates = ["small", {"model": "large", "temperature": 0}]
    param, _ = await refused(world, "/v1/compare", candidates=candidates)
    assert param == "candidates.1.temperature"


@pytest.mark.parametrize("value", [None, "", [], {}])
async def test_what_asks_for_nothing(world: World, value: Any) -> None:
    names = {*SAME, *MISSING, *CARRIERS, "compositon", "alpha"} - set(ChatCompletionRequest.model_fields)
    response = await world.post("/v1/chat/completions", **CHAT, **dict.fromkeys(list(names)[:60], value))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "field",
    [
        {"repeat_penalty": 1.0},
        {"num_beams": 1},
        {"do_sample": True},
        {"n_predict": -1},
        {"best_of": 1},
        {"top_a": 0},
        {"json_mode": False},
        {"detokenize": True},
        {"reasoning_budget": -1},
        {"echo": False},
        {"vendors": False},
    ],
)
async def test_values_that_change_nothing(world: World, field: dict[str, Any]) -> None:
    assert (await world.post("/v1/chat/completions", **CHAT | field)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_ignored_stands_in_a_header(world: World, stream: bool) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}]
    harmless = {"user": "me", "metadata": {"a": 1}, "vendor\n\u00e9": 1}
    response = await world.post("/v1/chat/completions", **CHAT | {"messages": messages, "stream": stream} | harmless)
    assert response.status_code == 200
    assert response.headers[IGNORED] == "cache_control, metadata, user, vendor\\n\\xe9"
    plain = await world.post("/v1/chat/completions", **CHAT, user=None)
    assert IGNORED not in plain.headers


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "Hi", "composition": PROXY}]},
        {"messages": [{"role": "user", "content": "Hi", "vendor": {"compositions": [PROXY]}}]},
        {"metadata": {"composition": PROXY}},
        {"provider": {"options": [{"composition": PROXY}]}},
        {"chat_template_kwargs": {"composition": PROXY}},
        {"stream": True, "stream_options": {"composition": PROXY}},
    ],
)
async def test_a_composition_in_the_wrong_place_is_never_ignored(world: World, change: dict[str, Any]) -> None:
    """The plain model would answer who asked for the steered one."""
    param, message = await refused(world, **change)
    assert (param or "").split(".")[0] == list(change)[-1]
    assert "composition" in message
    assert "beside 'model'" in message


async def test_notes_may_speak_of_strategies(world: World) -> None:
    notes = {"strategy": "a", "composition": "x", "run": {"strategy": "b"}}
    assert (await world.post("/v1/chat/completions", **CHAT, metadata=notes)).status_code == 200


async def test_harmless_names_are_ignored(world: World) -> None:
    for name in HARMLESS - set(ChatCompletionRequest.model_fields):
        assert (await world.post("/v1/chat/completions", **CHAT | {name: "x"})).status_code == 200, name


async def test_many_unknown_names_cost_little(world: World) -> None:
    began = time.process_time()
    unknown: dict[str, Any] = {f"vendor{i:05}qq": 1 for i in range(20_000)}
    param, message = await refused(world, **unknown)
    assert "more than 64" in message
    assert param
    assert time.process_time() - began < 2


async def test_a_limit_beyond_the_context_is_cut(world: World) -> None:
    """As vLLM does; what it was cut to stands in the header."""
    world.script("large", "a" * 300)
    fixed = {"model": "large", "prompt": "Hi", "temperature": 0}
    response = await world.post("/v1/completions", **fixed, max_tokens=1000)
    assert response.headers[MAX_TOKENS] == "254"
    assert response.json()["usage"]["completion_tokens"] == 254
    for given in ({"max_tokens": -1}, {"max_tokens": 254}):
        response = await world.post("/v1/completions", **fixed, **given)
        assert MAX_TOKENS not in response.headers
        assert response.json()["usage"]["completion_tokens"] == 254
    chat = await world.post("/v1/chat/completions", **CHAT | {"max_completion_tokens": -1, "temperature": 0})
    assert chat.json()["usage"]["completion_tokens"] == 254


async def test_usage_counts_the_prompt_that_was_sent(world: World) -> None:
    composition = PROXY | {"base": {"model": "large", "prompt": ""}}
    body: dict[str, Any] = {"model": "large", "prompt": "Hello", "max_tokens": 2, "composition": composition}
    answer = (await world.post("/v1/completions", **body)).json()
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["motet"]["streams"][0]["prompt_tokens"] == 1
    own = {"model": "large", "prompt": "abc"}
    body["composition"] = {"strategy": "product", "members": [own, own]}
    assert (await world.post("/v1/completions", **body)).json()["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("name", [" \n1é", " ", "x\r\nset-cookie: a", "\x00", "日本 ", "\t", "\u2028"])
async def test_any_name_can_stand_in_the_header(name: str) -> None:
    """Over a real connection, which breaks off at a header that is none."""
    async with listening(make_service()) as (url, _), httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/tokenize", json={"model": "large", "prompt": "a", name: 1})
    assert answer.status_code == 200
    assert answer.headers[IGNORED] == ascii(name)[1:-1].strip()
    assert "set-cookie" not in answer.headers


async def test_long_names_are_not_kept(world: World) -> None:
    """What a name was likened to is remembered for the next request; a name of a megabyte would be, too."""
    names = [f"{number}{'x' * (1 << 20)}" for number in range(12)]
    await world.post("/v1/chat/completions", **CHAT | {names.pop(): 1})
    tracemalloc.start()
    try:
        for name in names:
            await world.post("/v1/chat/completions", **CHAT | {name[:1] + name: 1})
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 4 << 20
    finally:
        tracemalloc.stop()


async def test_a_field_in_the_query_is_refused_and_what_is_no_field_is_not(world: World) -> None:
    """A client that writes them there would be answered as if it had not."""
    param, said = await refused(world, "/v1/chat/completions?composition=large-proxy")
    assert param == "composition"
    assert "from the body alone" in said
    assert (await refused(world, "/v1/chat/completions?temperature=0"))[0] == "temperature"
    assert (await refused(world, "/v1/messages?thinking=1"))[0] == "thinking"
    assert (await refused(world, "/v1/responses?input=x"))[0] == "input"
    assert (await refused(world, "/detokenize?tokens=1"))[0] == "tokens"
    answer = await world.post("/v1/chat/completions?api-version=2024-10-21", **CHAT)  # as clients of Azure send
    assert answer.status_code == 200
