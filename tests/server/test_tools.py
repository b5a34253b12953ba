"""Tools over HTTP: what templates read of them, what answers may be, and how calls come back, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest

from motet.models.tool_formats import TOOL_FORMATS
from motet.server.shapes.answers import ChatCompletion
from tests.fakes import byte_tokenizer, fake_member
from tests.models.test_chat_template import HERMES, LLAMA, MISTRAL, UNKNOWN
from tests.server.conftest import MakeWorld, World
from tests.server.streams import chunks_of

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "clock"}},
]
SCHEMAS = {"get_weather": {**WEATHER, "additionalProperties": False}, "clock": {"type": "object", "maxProperties": 0}}
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 400, "temperature": 1.0, "seed": 5}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
HISTORY: list[dict[str, Any]] = [
    *MESSAGES,
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
]


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(max_choices=64)


def serve(world: World, template: str | None = None, form: str | None = None, **own: Any) -> World:
    """The model `m` has the template, and the format that the operator names."""
    tokenizer = byte_tokenizer() if template is None else byte_tokenizer(chat_template=template)
    member = fake_member("m", tokenizer, "chat", max_model_len=2048)
    member = replace(member, own_format=None if form is None else TOOL_FORMATS[form], **own)
    members: Any = world.service.registry.members
    members["m"] = member
    world.engine.infos["m"] = member.info
    return world


async def ask(world: World, **body: Any) -> dict[str, Any]:
    """The whole answer."""
    answer = await world.post("/v1/chat/completions", **{**CHAT, **body})
    assert answer.status_code == 200, answer.text
    ChatCompletion.model_validate(answer.json())
    return answer.json()


async def chunks(world: World, **body: Any) -> list[dict[str, Any]]:
    answer = await world.post("/v1/chat/completions", **{**CHAT, **body, "stream": True})
    return chunks_of(answer.text)


async def refusal(world: World, **body: Any) -> tuple[str | None, str]:
    answer = await world.post("/v1/chat/completions", **{**CHAT, **body})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"], answer.json()["error"]["message"]


async def prompt(world: World, **body: Any) -> str:
    """What the model reads."""
    ids = (await ask(world, **{"max_tokens": 1, **body}, return_token_ids=True))["prompt_token_ids"]
    return world.service.registry.members["m"].tokenizer.decode(ids)


def check(calls: Sequence[dict[str, Any]]) -> None:
    assert calls
    for call in calls:
        assert jsonschema_rs.is_valid(SCHEMAS[call["function"]["name"]], json.loads(call["function"]["arguments"]))


@pytest.mark.parametrize("form", TOOL_FORMATS)
async def test_required_calls_keep_to_their_schemas(world: World, form: str) -> None:
    """A model of random tokens, in every format."""
    serve(world, form=form)
    for seed in range(3):
        body = await ask(world, tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=seed == 2)
        choice = body["choices"][0]
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] in ("tool_calls", "length")
        if choice["finish_reason"] == "tool_calls":
            check(choice["message"]["tool_calls"])
        if seed < 2:
            assert choice["finish_reason"] == "tool_calls"
            assert len(choice["message"]["tool_calls"]) == 1


async def test_a_named_function_is_called_once(world: World) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = await ask(serve(world, form="hermes"), tools=TOOLS, tool_choice=choice, n=3)
    for one in body["choices"]:
        check(one["message"]["tool_calls"])
        assert [call["function"]["name"] for call in one["message"]["tool_calls"]] == ["get_weather"]
    assert len({one["message"]["tool_calls"][0]["id"] for one in body["choices"]}) == 3


@pytest.mark.parametrize("form", TOOL_FORMATS)
async def test_a_call_that_the_model_begins_is_held_to_its_schema(world: World, form: str) -> None:
    """`auto`: the model would write city 5, which the grammar does not let it."""
    serve(world, form=form)
    wrong = TOOL_FORMATS[form].written([("get_weather", '{"city": 5, "days": 30}')])
    world.script("m", wrong)
    body = await ask(world, tools=TOOLS, temperature=0)
    call = body["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["name"] == "get_weather"
    if body["choices"][0]["finish_reason"] == "tool_calls":
        check([call])
    assert not call["function"]["arguments"].startswith('{"city": 5')


@pytest.mark.parametrize("form", TOOL_FORMATS)
async def test_streams_are_the_whole_answer(world: World, form: str) -> None:
    """The name with its id first, then pieces of arguments; log-probs beside them."""
    serve(world, form=form)
    calls = [("get_weather", '{"city": "Rome", "days": 3}'), ("clock", "{}")]
    lead = "" if TOOL_FORMATS[form].is_bare else "I look.\n"
    world.script("m", lead + TOOL_FORMATS[form].written(calls))
    asked: dict[str, Any] = {"tools": TOOLS, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    whole = (await ask(world, **asked))["choices"][0]
    assert whole["message"]["content"] == (lead.strip() or None)
    assert whole["finish_reason"] == "tool_calls"
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in whole["message"]["tool_calls"]] == calls
    sent = await chunks(world, **asked, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in sent if chunk["choices"]]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["tool_calls"]
    assert choices[-1]["finish_reason"] == "tool_calls"
    pieces = [call for c in choices for call in c["delta"].get("tool_calls", [])]
    begins = [call for call in pieces if "id" in call]
    assert [(c["index"], c["type"], c["function"]) for c in begins] == [
        (n, "function", {"name": name, "arguments": ""}) for n, (name, _) in enumerate(calls)
    ]
    for n, (_, arguments) in enumerate(calls):
        own = [call for call in pieces if call["index"] == n]
        assert "id" in own[0]
        assert "".join(call["function"]["arguments"] for call in own) == arguments
    assert "".join(c["delta"].get("content") or "" for c in choices) == lead.strip()
    logprobs = [token for c in choices if c["logprobs"] for token in c["logprobs"]["content"]]
    assert logprobs == whole["logprobs"]["content"]
    assert sent[-1]["usage"]["completion_tokens"] == len(logprobs)


async def test_an_answer_without_calls_is_text(world: World) -> None:
    serve(world, form="json")
    world.script("m", "It is noon.\n")
    choice = (await ask(world, tools=TOOLS, temperature=0))["choices"][0]
    assert choice["message"]["content"] == "It is noon.\n"
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


FENCED = '```json\n{"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}\n```'


@pytest.mark.parametrize("form", TOOL_FORMATS)
async def test_a_fenced_call_alone_is_one(world: World, form: str) -> None:
    """Qwen 2.5 Coder writes them so, though its template asks for tags."""
    serve(world, form=form)
    world.script("m", FENCED)
    choice = (await ask(world, tools=TOOLS, temperature=0))["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    check(choice["message"]["tool_calls"])
    sent = [chunk["choices"][0] for chunk in await chunks(world, tools=TOOLS, temperature=0)]
    pieces = [call for one in sent for call in one["delta"].get("tool_calls", [])]
    assert not any(one["delta"].get("content") for one in sent)
    assert sent[-1]["finish_reason"] == "tool_calls"
    assert pieces[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"city": "Rome", "days": 3}'


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": TOOLS}, FENCED + "\nThis calls the function."),
        ({"tools": TOOLS, "tool_choice": "none"}, FENCED),
        ({"tools": TOOLS, "guided_regex": "```json(.|\\n)*```"}, FENCED),
        ({"tools": [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]}, FENCED),
    ],
    ids=["more", "none", "format", "strict"],
)
async def test_a_fenced_block_stays_text(world: World, fields: dict[str, Any], said: str) -> None:
    """Where the answer says more, where nothing may be called, where a format asks for it, and where a grammar alone
    may write arguments."""
    serve(world, form="hermes")
    world.script("m", said)
    choice = (await ask(world, **fields, temperature=0))["choices"][0]
    assert choice["message"]["content"] == said
    assert "tool_calls" not in choice["message"]
    sent = [chunk["choices"][0]["delta"] for chunk in await chunks(world, **fields, temperature=0)]
    assert "".join(delta.get("content") or "" for delta in sent) == said


async def test_stop_strings_and_limits_cut_calls(world: World) -> None:
    serve(world, form="hermes")
    world.script("m", TOOL_FORMATS["hermes"].written([("get_weather", '{"city": "Rome", "days": 3}')]))
    stopped = (await ask(world, tools=TOOLS, temperature=0, stop="Ro"))["choices"][0]
    assert stopped["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'
    assert stopped["finish_reason"] == "stop", "arguments that are no JSON call nothing"
    assert stopped["stop_reason"] == "Ro"
    sent = (await chunks(world, tools=TOOLS, temperature=0, stop="Ro"))[-1]["choices"][0]
    assert (sent["finish_reason"], sent["stop_reason"]) == ("stop", "Ro")
    whole = (await ask(world, tools=TOOLS, temperature=0, stop="</tool"))["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    check(whole["message"]["tool_calls"])
    cut = (await ask(world, tools=TOOLS, temperature=0, max_tokens=60))["choices"][0]
    assert cut["finish_reason"] == "length"


@pytest.mark.parametrize("form", TOOL_FORMATS)
async def test_an_answer_that_must_call_says_nothing_where_it_is_cut(world: World, form: str) -> None:
    """At every length, whole and streamed, in chats and in Responses. Without calls there is one empty message."""
    serve(world, form=form)
    written = TOOL_FORMATS[form].written([("clock", "{}"), ("clock", "{}")])
    world.script("m", written)
    asked: dict[str, Any] = {"tools": TOOLS[1:], "tool_choice": "required", "temperature": 0}
    own = {"model": "m", "input": "hi", "tools": [{"type": "function", "name": "clock"}], "temperature": 0}
    for most in range(1, len(written)):
        choice = (await ask(world, **asked, max_tokens=most))["choices"][0]
        assert not choice["message"]["content"], most
        assert choice["finish_reason"] == "length"
        assert not any(c["choices"][0]["delta"].get("content") for c in await chunks(world, **asked, max_tokens=most))
        body = (await world.post("/v1/responses", **own, tool_choice="required", max_output_tokens=most)).json()
        assert not [item for item in body["output"] if item["type"] == "message" and item["content"][0]["text"]]
        assert len(body["output"]) == max(1, len(choice["message"].get("tool_calls", []))), body["output"]


async def test_json_beside_tools(world: World) -> None:
    """The answer keeps to the response's format, or is a call."""
    serve(world, form="hermes")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "ok", "schema": {**schema, "additionalProperties": False}}}
    for seed in range(4):
        message = (await ask(world, tools=TOOLS, response_format=wanted, seed=seed))["choices"][0]["message"]
        if "tool_calls" in message:
            check(message["tool_calls"])
        else:
            assert isinstance(json.loads(message["content"])["ok"], bool)
    world.script("m", "<tool_call>")
    message = (await ask(world, tools=TOOLS, response_format=wanted, temperature=0))["choices"][0]["message"]
    check(message["tool_calls"])


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (HERMES, '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'),
        (LLAMA, '{"name": "clock", "parameters": {}}'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "clock", "arguments": {}, "id": "'),
    ],
)
async def test_history_is_read_through_the_template(world: World, template: str, shown: str) -> None:
    read = await prompt(serve(world, template), messages=HISTORY, tools=TOOLS)
    assert "<tools>" in read
    assert '"get_weather"' in read
    assert f"<|assistant|>{shown}" in read
    assert "<|tool|>noon" in read
    assert "tools" not in await prompt(world, messages=HISTORY)
    assert "tools" not in await prompt(world, messages=HISTORY, tools=TOOLS, tool_choice="none")


ADA, BO = ({"role": "user", "name": name, "content": "hi"} for name in ("Ada", "Bo"))


async def test_names_are_shown(world: World) -> None:
    said = [ADA, {**BO, "role": "assistant"}]
    shown = HERMES.replace("{{ message.role }}", "{{ message.role }} {{ message.name }}")
    read = await prompt(serve(world, shown), messages=[*said, *MESSAGES])
    assert read.startswith("<|user Ada|>hi<|assistant Bo|>hi<|user |>hi")


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([ADA, BO], 0),
        ([MESSAGES[0], {**ADA, "role": "assistant"}, MESSAGES[0], {**BO, "role": "assistant"}, MESSAGES[0]], 1),
        ([MESSAGES[0], ADA], 1),  # the one without a name is another
        ([{**ADA, "role": "system"}, {"role": "system", "content": "x"}, MESSAGES[0]], 0),
        ([{**ADA, "content": "Ada: hi"}, BO], 1),
    ],
)
async def test_names_that_tell_participants_apart_are_refused_where_nobody_shows_them(
    world: World, messages: list[dict[str, Any]], place: int
) -> None:
    got = await refusal(serve(world, HERMES), messages=messages)
    assert got[0] == f"messages.{place}.name"
    assert "content" in got[1]


@pytest.mark.parametrize(
    "messages",
    [
        [ADA, {**BO, "role": "assistant"}, ADA],  # AutoGen and LangGraph name whoever speaks
        [{**ADA, "role": "system"}, BO],
        [{**ADA, "content": "Ada: hi"}, {**BO, "content": "Bo: hi"}],
    ],
)
async def test_names_that_tell_nothing_change_nothing(world: World, messages: list[dict[str, Any]]) -> None:
    served = serve(world, HERMES)
    told = await served.post("/v1/chat/completions", **CHAT | {"messages": messages})
    assert told.headers["x-motet-ignored-fields"] == "messages.name"
    unnamed = [{field: value for field, value in turn.items() if field != "name"} for turn in messages]
    assert await prompt(served, messages=messages) == await prompt(served, messages=unnamed)


async def test_the_name_of_a_function_is_known_from_its_call(world: World) -> None:
    named = {**HISTORY[2], "name": "clock"}
    assert "<|tool|>noon" in await prompt(serve(world, HERMES), messages=[*HISTORY[:2], named])
    got = await refusal(serve(world, HERMES), messages=[*HISTORY[:2], {**named, "name": "weather"}])
    assert got[0] == "messages.2.name"


async def test_parts_reach_every_template(world: World) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    assert "<|user|>hi" in await prompt(serve(world, HERMES), messages=[{"role": "user", "content": parts}])
    walked = "{% for part in message.content %}{{ part.text }}{% endfor %}"
    walks = "{% for message in messages %}<|{{ message.role }}|>" + walked + "{% endfor %}"
    for content in ("hi", parts):
        read = await prompt(serve(world, walks), messages=[{"role": "user", "content": content}])
        assert read == "<|user|>hi"
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    got = await refusal(serve(world, HERMES), messages=[{"role": "user", "content": [picture]}])
    assert str(got[0]).startswith("messages.0.content")


async def test_history_in_words(world: World) -> None:
    """A template that knows no tools, and a format that the operator names."""
    read = await prompt(
        serve(world, form="hermes"), messages=[*HISTORY, {"role": "user", "content": "And now?"}], tools=TOOLS
    )
    assert read.startswith("<|system|>You may call functions")
    assert '"name": "get_weather"' in read
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert f"<|assistant|>{call}<|user|><tool_response>\nnoon\n</tool_response>\nAnd now?<|assistant|>" in read
    untold = await prompt(serve(world, form="hermes", describe_tools=False), messages=HISTORY, tools=TOOLS)
    assert untold.startswith("<|user|>hi<|assistant|><tool_call>")


async def test_every_member_reads_tools_in_its_own_way(world: World) -> None:
    """The base leads: its format holds, and is what members without one are told of."""
    serve(world, HERMES)
    members: Any = world.service.registry.members
    members["expert"] = fake_member("expert", byte_tokenizer(), "chat", max_model_len=2048)
    body = await ask(
        world,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        composition={"strategy": "product", "members": ["m", {"model": "expert", "weight": 0.5}]},
    )
    check(body["choices"][0]["message"]["tool_calls"])
    read = [world.service.registry.members["m"].tokenizer.decode(ids) for ids in world.engine.requests[-1].contexts]
    assert "<tools>" in read[0]
    assert "You may call functions" in read[1]
    assert "<tool_call>" in read[1]


@pytest.mark.parametrize(
    ("template", "body", "param", "said"),
    [
        (None, {"tools": TOOLS}, "tools", "models.NAME.tool_call_parser"),
        (UNKNOWN, {"tools": TOOLS}, "tools", "models.NAME.tool_call_parser"),
        (None, {"messages": HISTORY}, "messages.1.tool_calls", "tool_call_parser"),
        (HERMES, {"tool_choice": "required"}, "tool_choice", "offers no function"),
        (HERMES, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "clok"}}},
         "tool_choice.function.name", "'clock'"),
        (HERMES, {"tools": [TOOLS[1], TOOLS[1]]}, "tools", "'clock'"),
        (HERMES, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        (HERMES, {"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        (HERMES, {"tools": TOOLS, "guided_grammar": "start: \"a\""}, "guided_grammar", "excludes calls"),
        (HERMES, {"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}]}, "messages.0",
         "messages.0: 'tool_calls' belongs"),
        (HERMES, {"messages": [{"role": "assistant", "tool_calls": [
            {**CALLED, "function": {"name": "clock", "arguments": "[1]"}}]}]},
         "messages.0.tool_calls.0.function.arguments", "JSON object"),
        (HERMES, {"messages": [{"role": "assistant", "tool_calls": [
            {**CALLED, "function": {"name": "clock", "arguments": "{"}}]}]},
         "messages.0.tool_calls.0.function.arguments", "no JSON"),
        (HERMES, {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
            "type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}}}]}, "tools", "tools"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(
    world: World, template: str | None, body: dict[str, Any], param: str, said: str
) -> None:
    got = await refusal(serve(world, template), **body)
    assert got[0] == param
    assert said in got[1]


async def test_a_loose_function_may_have_a_schema_that_no_grammar_holds(world: World) -> None:
    odd = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": odd}}]
    choice = (await ask(serve(world, HERMES), tools=tools, tool_choice="required", parallel_tool_calls=False))[
        "choices"
    ][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "f"


async def test_a_template_of_one_call_gets_one(world: World) -> None:
    serve(world, LLAMA)
    world.script("m", TOOL_FORMATS["llama3_json"].written([("clock", "{}"), ("clock", "{}")]))
    assert len((await ask(world, tools=TOOLS, temperature=0))["choices"][0]["message"]["tool_calls"]) == 1


async def test_special_tokens_that_mark_calls_are_read(world: World) -> None:
    """Mistral's mark is a special token, which answers otherwise leave out."""
    serve(world, form="hermes")
    form = replace(TOOL_FORMATS["hermes"], opens="<|system|>", closes="<|user|>")
    members: Any = world.service.registry.members
    members["m"] = replace(members["m"], own_format=form)
    body = await ask(world, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    check(body["choices"][0]["message"]["tool_calls"])
    world.script("m", f"Well, <|system|>{TOOL_FORMATS['json'].written([('clock', '{}')])}<|user|>")
    choice = (await ask(world, tools=TOOLS, temperature=0))["choices"][0]
    assert choice["message"]["content"] == "Well,"
    check(choice["message"]["tool_calls"])
