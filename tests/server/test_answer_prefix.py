"""`answer_prefix`: an answer that begins with given tokens, behind whatever each member reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import World
from tests.server.streams import chunks_of
from tests.server.test_chat import HELLO

ASKED: dict[str, Any] = {
    "messages": HELLO,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
    "trace": True,
}


async def choice(world: World, **fields: Any) -> dict[str, Any]:
    response = await world.post("/v1/chat/completions", **{**ASKED, "model": "large-proxy", **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


async def test_an_answer_goes_on_from_its_own_beginning(world: World) -> None:
    """Tokens, text, log-probs and traces are those of the whole answer: nothing tells that it was begun before."""
    whole = await choice(world, max_tokens=6, logprobs=True)
    begun = await choice(world, max_tokens=4, logprobs=True, answer_prefix=whole["token_ids"][:2])
    assert begun == whole


async def test_another_beginning_leads_elsewhere(world: World) -> None:
    whole = await choice(world, max_tokens=4)
    other = [(whole["token_ids"][0] + 1) % 200]
    begun = await choice(world, max_tokens=3, answer_prefix=other)
    assert begun["token_ids"][:1] == other
    assert begun["token_ids"] != whole["token_ids"]
    contexts = [request.contexts for request in world.engine.requests]
    assert contexts[0] == contexts[1], "members read what they read without it"
    assert world.engine.requests[1].forced == tuple(other)


async def test_a_text_is_tokenized_behind_the_prompt(world: World) -> None:
    response = await world.post(
        "/v1/completions", model="large", prompt="Hel", answer_prefix="lo", max_tokens=2, ignore_eos=True, echo=True
    )
    body = response.json()
    assert body["choices"][0]["text"].startswith("Hello")
    assert body["usage"]["completion_tokens"] == 2 + len(world.engine.requests[0].forced)


async def test_a_scored_prompt_stays_apart_from_it(world: World) -> None:
    response = await world.post(
        "/v1/completions", model="large", prompt="Hello", answer_prefix="yo", max_tokens=1, ignore_eos=True, echo=True,
        logprobs=0, return_token_ids=True,
    )  # fmt: skip
    made = response.json()["choices"][0]
    request = world.engine.requests[0]
    count = len(request.forced) - request.num_prompt_forced
    assert 0 < count < len(request.forced)
    assert made["token_ids"][:count] == list(request.forced[-count:])
    assert len(made["logprobs"]["tokens"]) == 1 + request.num_prompt_forced + count + 1


async def test_it_is_streamed_as_a_part_of_the_answer(world: World) -> None:
    whole = await choice(world, max_tokens=6)
    response = await world.post(
        "/v1/chat/completions",
        **{**ASKED, "model": "large-proxy", "max_tokens": 4, "answer_prefix": whole["token_ids"][:2], "stream": True},
    )
    chunks = [event["choices"][0] for event in chunks_of(response.text)]
    text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
    assert text == whole["message"]["content"]
    assert [token for chunk in chunks for token in chunk.get("token_ids", [])] == whole["token_ids"]


async def test_a_stop_text_in_it_ends_the_answer(world: World) -> None:
    response = await world.post(
        "/v1/completions", model="large", prompt="Hi", answer_prefix="one. two", max_tokens=4, stop=".", ignore_eos=True
    )
    made = response.json()["choices"][0]
    assert (made["text"], made["finish_reason"]) == ("one", "stop")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer_prefix": ""}, "at least 1"),
        ({"answer_prefix": []}, "at least 1"),
        ({"answer_prefix": [99999]}, "not in the vocabulary"),
        ({"answer_prefix": "x" * 400}, "maximum context length"),
        ({"answer_prefix": "{", "response_format": {"type": "json_object"}}, "excludes structured outputs"),
    ],
)
async def test_refusals(world: World, fields: dict[str, Any], said: str) -> None:
    response = await world.post("/v1/chat/completions", model="large", messages=HELLO, max_tokens=2, **fields)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]
    assert world.service.admission.taken == 0
