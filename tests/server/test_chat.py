"""POST /v1/chat/completions over the fake engine."""

from __future__ import annotations

from motet.server.shapes.answers import ChatCompletion
from tests.server.conftest import World
from tests.server.streams import chunks_of

HELLO = [{"role": "user", "content": "Hello"}]


async def test_answer_has_the_documented_shape(world: World) -> None:
    world.script("parrot", "Good day")
    response = await world.post("/v1/chat/completions", model="parrot", messages=HELLO)
    assert response.status_code == 200
    body = ChatCompletion.model_validate(response.json())
    assert body.choices[0].message.content == "Good day"
    assert body.choices[0].finish_reason == "stop"
    assert body.usage.prompt_tokens == 7  # <|user|>, five letters, <|assistant|>
    assert body.usage.completion_tokens == 9  # the end of the sequence is a token
    assert body.usage.prompt_tokens_details.cached_tokens == 2


async def test_every_member_reads_its_own_template(world: World) -> None:
    await world.post("/v1/chat/completions", model="large-proxy", messages=HELLO, max_tokens=1)
    base, expert, antiexpert = world.engine.requests[0].contexts
    decode = world.service.registry.members["large"].tokenizer.decode
    assert decode(base) == decode(antiexpert) == "Hello"
    assert decode(expert) == "<|user|>Hello<|assistant|>"


async def test_a_role_may_have_its_own_prompt(world: World) -> None:
    composition = {
        "strategy": "proxy_tuning",
        "expert": {"model": "expert", "messages": [{"role": "user", "content": "Hi"}], "last_tokens": 2},
        "antiexpert": {"model": "small", "prompt": ""},
    }
    await world.post("/v1/chat/completions", model="large", messages=HELLO, composition=composition, max_tokens=1)
    decode = world.service.registry.members["large"].tokenizer.decode
    assert [decode(ids) for ids in world.engine.requests[0].contexts] == ["Hello", "i<|assistant|>", "<|end|>"]


async def test_text_parts_system_and_developer(world: World) -> None:
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
    ]
    await world.post("/v1/chat/completions", model="expert", messages=messages, max_tokens=1)
    decode = world.service.registry.members["expert"].tokenizer.decode
    assert decode(world.engine.requests[0].contexts[0]) == "<|system|>Be brief<|user|>AB<|assistant|>"


async def test_default_max_tokens_is_what_fits(world: World) -> None:
    await world.post("/v1/chat/completions", model="large-proxy", messages=HELLO, temperature=0, stop=["A", "E"])
    sampling = world.engine.requests[0].sampling
    assert sampling.max_tokens == 256 - 7  # the expert's rendered prompt is the longest


async def test_stream_equals_the_whole(world: World) -> None:
    world.script("parrot", "Grüße, 世界 🎼!")
    whole = await world.post("/v1/chat/completions", model="parrot", messages=HELLO, n=2)
    streamed = await world.post("/v1/chat/completions", model="parrot", messages=HELLO, n=2, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(streamed.text)
    for choice in whole.json()["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]


async def test_stream_usage(world: World) -> None:
    world.script("parrot", "abc")
    options = {"include_usage": True}
    response = await world.post(
        "/v1/chat/completions", model="parrot", messages=HELLO, stream=True, stream_options=options
    )
    chunks = chunks_of(response.text)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 11


async def test_continuous_usage(world: World) -> None:
    world.script("parrot", "abc")
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await world.post(
        "/v1/chat/completions", model="parrot", messages=HELLO, stream=True, stream_options=options
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(response.text)]
    assert counts == [0, 1, 2, 3, 4, 4]


async def test_logprobs(world: World) -> None:
    response = await world.post(
        "/v1/chat/completions",
        model="large",
        messages=HELLO,
        max_tokens=3,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = response.json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 3
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]  # greedy: the very same float
        assert bytes(entry["bytes"]).decode() == entry["token"]


async def test_trace_names_every_member(world: World) -> None:
    response = await world.post(
        "/v1/chat/completions",
        model="large-proxy",
        messages=HELLO,
        max_tokens=2,
        trace={"top": 3},
    )
    body = response.json()
    entries = body["choices"][0]["motet"]["trace"]
    assert len(entries) == 2
    for entry in entries:
        assert list(entry["members"]) == ["base", "expert", "antiexpert"]
        assert entry["shift"] == {0: "unshifted", 1: "marginal", 2: "marginal"}.get(entry["base_rank"], "shifted")
        assert len(entry["top"]["base"]) == len(entry["top"]["composed"]) == 3
        assert entry["kl"] >= 0
    assert body["motet"]["strategy"] == "proxy_tuning"
    assert body["motet"]["weight_sum"] == 1.0
    assert [stream["prompt_tokens"] for stream in body["motet"]["streams"]] == [5, 7, 5]


async def test_no_trace_unless_asked(world: World) -> None:
    response = await world.post("/v1/chat/completions", model="large", messages=HELLO, max_tokens=1, trace=False)
    assert "motet" not in response.json()["choices"][0]


async def test_continue_final_message(world: World) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Good"}]
    await world.post(
        "/v1/chat/completions", model="expert", messages=messages, max_tokens=1, continue_final_message=True
    )
    decode = world.service.registry.members["expert"].tokenizer.decode
    assert decode(world.engine.requests[0].contexts[0]) == "<|user|>Hello<|assistant|>Good"


async def test_guidance_aliases(world: World) -> None:
    response = await world.post(
        "/v1/chat/completions",
        model="expert",
        messages=HELLO,
        max_tokens=1,
        guidance_scale=1.5,
        negative_prompt="Rude",
    )
    assert response.json()["motet"]["strategy"] == "guidance"
    decode = world.service.registry.members["expert"].tokenizer.decode
    assert decode(world.engine.requests[0].contexts[1]) == "<|user|>Rude<|assistant|>"
