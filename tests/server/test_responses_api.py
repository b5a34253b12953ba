"""`/v1/responses`: chat completions as output items and as events, read by the openai SDK's own types."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from motet.server.adapters import responses_answer
from motet.server.adapters.responses_answer import ResponseEvents, ResponsesAdapter
from motet.server.adapters.responses_request import ResponsesRequest
from motet.server.http.writing import CHARACTERS, ITEMS
from tests.server.conftest import World
from tests.server.streams import events_of

BODY: dict[str, Any] = {"model": "large", "input": "Hi", "temperature": 0}
EVENT = TypeAdapter[Any](ResponseStreamEvent)
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "clock",
    "description": "The time.",
    "parameters": {"type": "object", "properties": {}},
}


async def asked(world: World, **body: Any) -> dict[str, Any]:
    answer = await world.post("/v1/responses", **BODY | body)
    assert answer.status_code == 200, answer.text
    Response.model_validate(answer.json(), strict=False)
    return answer.json()


async def events(world: World, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the SDK's type of its name."""
    answer = await world.post("/v1/responses", **BODY | body, stream=True)
    assert answer.status_code == 200, answer.text
    read = events_of(answer.text)
    for number, event in enumerate(read):
        assert event["sequence_number"] == number
        EVENT.validate_python(event)
    return read


def said(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


async def test_an_answer(world: World) -> None:
    world.script("large", "Hello")
    answer = await asked(world, instructions="Be kind.", metadata={"a": "b"}, store=True)
    assert said(answer) == "Hello"
    assert (answer["status"], answer["store"], answer["metadata"]) == ("completed", False, {"a": "b"})
    assert answer["usage"]["output_tokens"] == 6
    assert answer["motet"]["strategy"] == "plain"
    cut = await asked(world, max_output_tokens=3)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert said(cut) == "Hel"


async def test_a_stream_says_what_the_whole_answer_says(world: World) -> None:
    world.script("large", "Hello")
    for body in ({}, {"max_output_tokens": 3}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}):
        whole, read = await asked(world, **body), await events(world, **body)
        last = read[-1]["response"]
        assert read[-1]["type"] == f"response.{whole['status']}"
        deltas = [event["delta"] for event in read if event["type"] == "response.output_text.delta"]
        assert "".join(deltas) == said(whole) == said(last)
        assert last["usage"] == whole["usage"]
        for one, other in zip(whole["output"], last["output"], strict=True):
            assert {**one, "id": ""} == {**other, "id": ""}
    assert len(whole["output"][0]["content"][0]["logprobs"]) == 6


async def test_turns_are_those_of_a_chat(world: World) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "What time?"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "clock", "arguments": "{}", "status": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Noon.", "annotations": [], "logprobs": []}]},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "And now?"},
    ]
    world.give_tools("parrot")
    tools = [{"type": "function", "function": {key: value for key, value in TOOL.items() if key != "type"}}]
    await asked(world, model="parrot", input=items, instructions="Be kind.", tools=[TOOL], max_output_tokens=2)
    chat = {"model": "parrot", "messages": messages, "tools": tools, "max_tokens": 2, "temperature": 0}
    assert (await world.post("/v1/chat/completions", **chat)).status_code == 200
    ours, theirs = world.engine.requests
    assert ours.contexts == theirs.contexts


async def test_calls_are_items(world: World) -> None:
    world.give_tools("parrot")
    form = {"tools": [TOOL], "tool_choice": "required", "model": "parrot", "parallel_tool_calls": False}
    whole, read = await asked(world, **form), await events(world, **form)
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert [(call["name"], call["arguments"]) for call in calls] == [("clock", "{}")]
    deltas = [event["delta"] for event in read if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == "".join(call["arguments"] for call in calls)
    kinds = [(item["type"], item["status"]) for item in read[-1]["response"]["output"]]
    assert kinds == [(item["type"], item["status"]) for item in whole["output"]]


async def test_text_keeps_to_a_schema(world: World) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "number", "schema": schema, "strict": True}}
    answer = await asked(world, text=form)
    assert json.loads(said(answer))["n"] in (1, 2)
    assert answer["text"]["format"]["schema"] == schema


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"include": ["message.output_text.logprobs", "file_search_call.results"]}, "include.1"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"n": 2}, "n"),
        ({"compositon": {}, "instructons": "x"}, "instructons"),
        ({"max_output_tokns": 3}, "max_output_tokns"),
        ({"input": []}, "input"),
    ],
)
async def test_refusals_name_the_field(world: World, change: dict[str, Any], param: str) -> None:
    answer = await world.post("/v1/responses", **BODY | change)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"truncation": "auto"}, "truncate_prompt_tokens"),
        ({"prompt": {"id": "pmpt_1"}}, "no prompts"),
        ({"background": True}, "stream it"),
        ({"previous_response_id": "resp_1"}, "no answers"),
        ({"include": ["message.output_text.logprob"]}, "Did you mean 'message.output_text.logprobs'?"),
    ],
)
async def test_refusals_say_the_reason(world: World, change: dict[str, Any], said: str) -> None:
    message = (await world.post("/v1/responses", **BODY | change)).json()["error"]["message"]
    assert said in message


async def test_what_asks_openais_server_for_nothing(world: World) -> None:
    idle = {
        "truncation": "disabled",
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "conversation": None,
    }
    assert (await world.post("/v1/responses", **BODY | idle)).status_code == 200


async def test_an_error_in_mid_stream_is_an_event(world: World) -> None:
    world.engine.fail_after = 2
    read = await events(world)
    assert read[-1]["type"] == "response.failed"
    assert read[-1]["response"]["error"]["code"] == "server_error"
    assert read[-1]["response"]["status"] == "failed"


async def test_a_trace_stands_beside_the_text(world: World) -> None:
    world.script("large", "Hi")
    whole, read = await asked(world, trace=True), await events(world, trace=True)
    deltas = [event for event in read if event["type"] == "response.output_text.delta"]
    assert [entry["token"] for event in deltas for entry in event["motet"]["trace"]] == ["H", "i", "<|end|>"]
    assert len(whole["motet"]["trace"]) == 3


def chunk(tokens: int) -> dict[str, Any]:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97]}
    logprobs = {"content": [entry | {"top_logprobs": [entry] * 20}] * tokens}
    choice = {"index": 0, "delta": {"content": "a" * tokens}, "logprobs": logprobs, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "created": 1, "model": "large", "choices": [choice]}


def test_a_large_response_is_written_in_pieces() -> None:
    """Its last events hold all log-probs four times: 85 MB of them stood the event loop still for seconds."""
    request = ResponsesRequest(model="large", input="a", instructions="b" * (4 * CHARACTERS))
    writer = ResponseEvents(request)
    written = [writer.write(chunk(1)) for _ in range(6 * ITEMS)]
    pieces = [*chain.from_iterable(written), *writer.end()]
    assert max(map(len, pieces)) < max(2 * CHARACTERS, ITEMS * 2000)
    read = events_of(b"".join(pieces).decode())
    assert [event["sequence_number"] for event in read] == list(range(len(read)))
    assert read[0]["response"]["instructions"] == request.instructions
    (item,) = read[-1]["response"]["output"]
    assert len(item["content"][0]["logprobs"]) == 6 * ITEMS


def test_a_whole_response_writes_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("encode_event", "event_pieces"):
        monkeypatch.delattr(responses_answer, name)
    whole = chunk(3)
    message = {"message": {"role": "assistant", "content": "aaa"}}
    body = whole | {"choices": [whole["choices"][0] | message], "usage": None}
    assert said(ResponsesAdapter(ResponsesRequest(model="large", input="a")).whole(body)) == "aaa"
