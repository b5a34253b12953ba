"""Anthropic's `/v1/messages`: chat completions as blocks and as events, and errors in Anthropic's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr

from motet.server.adapters.chat import merged
from tests.server.conftest import MakeWorld, World
from tests.server.streams import events_of

BODY: dict[str, Any] = {
    "model": "large",
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 40,
    "temperature": 0,
}
TOOL: dict[str, Any] = {
    "name": "clock",
    "description": "The time.",
    "input_schema": {"type": "object", "properties": {}},
}


async def asked(world: World, **body: Any) -> dict[str, Any]:
    answer = await world.post("/v1/messages", **BODY | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def events(world: World, **body: Any) -> list[dict[str, Any]]:
    answer = await world.post("/v1/messages", **BODY | body, stream=True)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def assembled(read: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream comes to, as Anthropic's SDKs put it together."""
    message: dict[str, Any] = {}
    for event in read:
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block, delta = message["content"][event["index"]], event["delta"]
                field = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}[delta["type"]]
                block[field] += delta[field.replace("json", "partial_json")]
            case "message_delta":
                message |= event["delta"] | {"usage": event["usage"]}
            case _:
                assert event["type"] in ("content_block_stop", "message_stop")
    for block in message["content"]:
        written = block.pop("json")
        block |= {"input": json.loads(written)} if written else {}
    return message


@pytest.mark.parametrize(
    ("change", "text", "reason"),
    [
        ({}, "Hello there", "end_turn"),
        ({"max_tokens": 4}, "Hell", "max_tokens"),
        ({"stop_sequences": ["the", "zz"]}, "Hello ", "stop_sequence"),
    ],
)
async def test_an_answer_whole_and_streamed(world: World, change: dict[str, Any], text: str, reason: str) -> None:
    world.script("large", "Hello there")
    whole = await asked(world, **change)
    assert whole["content"] == [{"type": "text", "text": text}]
    assert whole["stop_reason"] == reason
    assert whole["stop_sequence"] == ("the" if reason == "stop_sequence" else None)
    streamed = assembled(await events(world, **change))
    for name in ("content", "stop_reason", "stop_sequence", "role", "type"):
        assert streamed[name] == whole[name]
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


async def test_turns_are_those_of_a_chat(world: World) -> None:
    blocks = [
        {"role": "user", "content": "What time?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "clock", "input": {"zone": "é"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "noon"}]},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone":"é"}'}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What time?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "user", "content": "And now?"},
    ]
    parameters = {"name": "clock", "description": "The time.", "parameters": TOOL["input_schema"]}
    world.give_tools("parrot")
    tools = [{"type": "function", "function": parameters}]
    system = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
    await asked(world, model="parrot", messages=blocks, system=system, tools=[TOOL], max_tokens=2)
    chat = {"model": "parrot", "messages": messages, "tools": tools, "max_tokens": 2, "temperature": 0}
    assert (await world.post("/v1/chat/completions", **chat)).status_code == 200
    ours, theirs = world.engine.requests
    assert ours.contexts == theirs.contexts
    count = await world.post("/v1/messages/count_tokens", model="parrot", messages=blocks, system=system, tools=[TOOL])
    assert count.json() == {"input_tokens": len(ours.contexts[0])}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "clock"}])
async def test_uses_of_tools_are_blocks(world: World, choice: dict[str, Any]) -> None:
    world.give_tools("parrot")
    form = {"model": "parrot", "tools": [TOOL], "tool_choice": choice | {"disable_parallel_tool_use": True}}
    whole = await asked(world, **form, max_tokens=120)
    uses = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert [(use["name"], use["input"]) for use in uses] == [("clock", {})]
    assert whole["stop_reason"] == "tool_use"
    streamed = assembled(await events(world, **form, max_tokens=120))
    assert streamed["stop_reason"] == "tool_use"
    assert [block["type"] for block in streamed["content"]] == [block["type"] for block in whole["content"]]


async def test_output_keeps_to_a_schema(world: World) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = await asked(world, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(answer["content"][0]["text"])["n"] in (1, 2)


@pytest.mark.parametrize(
    ("change", "status", "kind", "said"),
    [
        ({"model": "lagre"}, 404, "not_found_error", "Did you mean 'large'"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_request_error", "messages.0.role"),
        ({"container": "c1"}, 400, "invalid_request_error", "runs no tools"),
        ({"context_management": {"edits": [1]}}, 400, "invalid_request_error", "never left out"),
        ({"mcp_servers": [{"name": "a"}]}, 400, "invalid_request_error", "runs no tools"),
        ({"skip_special_token": False}, 400, "invalid_request_error", "'skip_special_tokens'"),
        ({"compositon": {"strategy": "x"}}, 400, "invalid_request_error", "Did you mean 'composition'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error", "'text'"),
    ],
)
async def test_errors_are_anthropics(world: World, change: dict[str, Any], status: int, kind: str, said: str) -> None:
    answer = await world.post("/v1/messages", **BODY | change)
    assert answer.status_code == status
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert said in body["error"]["message"]


async def test_keys_come_in_anthropics_header(make_world: MakeWorld) -> None:
    world = make_world(api_keys=[SecretStr("k")])
    for headers, status in (({"x-api-key": "k"}, 200), ({"authorization": "Bearer k"}, 200), ({"x-api-key": "j"}, 401)):
        answer = await world.client.post("/v1/messages", json=BODY, headers=headers)
        assert answer.status_code == status
    assert answer.json()["error"]["type"] == "authentication_error"


async def test_an_error_in_mid_stream_is_an_event(world: World) -> None:
    world.engine.fail_after = 2
    read = await events(world)
    assert read[-1]["type"] == "error"
    assert read[-1]["error"]["type"] == "api_error"


def test_thousands_of_turns_are_joined_once() -> None:
    """Turn by turn, 8 MB of thoughts were copied 4,000 times in the event loop."""

    class Counted(str):
        def __add__(self, other: str) -> str:
            pytest.fail("copied")

        __radd__ = __add__

    turns = [
        {"role": "assistant", "content": None, "reasoning_content": Counted(f"{i}."), "tool_calls": [{"id": i}]}
        for i in range(3)
    ]
    (message,) = merged(turns)
    assert message["reasoning_content"] == "0.1.2."
    assert message["tool_calls"] == [{"id": i} for i in range(3)]
