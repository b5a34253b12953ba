"""What an answer may hold: counted before anything is computed, put together and written beside others."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.responses import JSONResponse

from motet.server import answer_size, forms, replies
from motet.server.adapters import adapter
from motet.server.answer_size import CODE
from motet.server.app import create_app
from motet.server.forms import CompletionForm
from motet.server.http import turns, writing
from motet.server.http.sse import encode
from motet.server.http.turns import Turns
from motet.server.http.writing import encoded
from motet.server.routes import tokens
from motet.server.shapes.requests import MAX_NUMBERS
from tests.server.conftest import World
from tests.server.streams import chunks_of

TEXT: dict[str, Any] = {"model": "large", "prompt": "abcd", "ignore_eos": True}
CHAT: dict[str, Any] = {"model": "large", "messages": [{"role": "user", "content": "abcd"}], "ignore_eos": True}
ALL: dict[str, Any] = {"logprobs": 2, "trace": {"top": 3}, "return_token_ids": True}
SCORE: dict[str, Any] = {"model": "large", "prompt": "a", "continuations": ["abc", "de"]}


def floats(value: Any) -> int:
    """Log-probs in an answer."""
    match value:
        case dict():
            return sum(map(floats, value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case list():
            return sum(map(floats, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case _:
            return isinstance(value, float)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(answer_size, "MAX_NUMBERS", 1000)
    return 1000


CASES: list[tuple[str, dict[str, Any], int]] = [
    # per token: 3 log-probs, a trace of 2 numbers and 6 alternatives, an id
    ("/v1/completions", TEXT | ALL | {"n": 4, "max_tokens": 20}, 4 * (20 * 12 + 4)),
    (
        "/v1/chat/completions",
        CHAT | ALL | {"logprobs": True, "top_logprobs": 2, "n": 4, "max_tokens": 20},
        4 * 20 * 12 + 4,
    ),
    ("/v1/compare", TEXT | ALL | {"candidates": ["large", "small"], "n": 4, "max_tokens": 10}, 2 * 4 * (10 * 12 + 4)),
    ("/v1/completions", TEXT | {"echo": True, "logprobs": 2, "max_tokens": 0, "n": 8}, 8 * 3 * 3),
    ("/v1/completions", TEXT | {"prompt_logprobs": 2, "max_tokens": 1, "n": 8}, 8 * 3 * 3),
    ("/v1/completions", TEXT | {"echo": True, "max_tokens": 1, "n": 8}, 8 * 4),
    ("/v1/completions", TEXT | {"max_tokens": 200, "n": 100}, 0),
    ("/v1/score", SCORE | {"trace": {"top": 3}}, 5 * 9),
]


@pytest.mark.parametrize(("path", "body", "count"), CASES)
async def test_counts(
    make_world: Any, path: str, body: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of just so many numbers is given, and holds hardly more; one less is refused before any is computed."""
    world: World = make_world()
    world.engine.kv_bytes_budget = 1 << 30
    monkeypatch.setattr(answer_size, "MAX_NUMBERS", count)
    answer = await world.post(path, **body)
    assert answer.status_code == 200
    if count:
        assert floats(answer.json()) <= 1.25 * count + 10
        world.engine.requests.clear()
        monkeypatch.setattr(answer_size, "MAX_NUMBERS", count - 1)
        refused = await world.post(path, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, CODE)
        assert f"{count:,}" in refused.json()["error"]["message"]
        assert f"{count - 1:,}" in refused.json()["error"]["message"]
        assert not world.engine.requests
        assert not world.service.admission.taken


async def test_streams_are_as_long_as_they_are(world: World, few: int) -> None:
    body = TEXT | ALL | {"n": 4, "max_tokens": 40}
    assert (await world.post("/v1/completions", **body)).status_code == 400
    streamed = await world.post("/v1/completions", **body, stream=True)
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert streamed.text.count('"token_ids":[') == 160


async def test_a_prompt_is_one_event_of_a_stream(world: World, few: int) -> None:
    body = TEXT | {"prompt": "a" * 60, "echo": True, "logprobs": 19, "max_tokens": 1, "stream": True}
    refused = await world.post("/v1/completions", **body)
    assert refused.status_code == 400
    assert "of prompts" in refused.json()["error"]["message"]


async def test_an_answer_without_a_length_ends_where_it_is_full(world: World, few: int) -> None:
    world.engine.kv_bytes_budget = 1 << 30
    answer = await world.post("/v1/chat/completions", **CHAT | {"logprobs": True, "top_logprobs": 4, "n": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2 * (few // (2 * 5))
    assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["length"] * 2
    least = await world.post(
        "/v1/chat/completions", **CHAT | {"logprobs": True, "top_logprobs": 4, "n": 2, "min_tokens": 101}
    )
    assert least.json()["error"]["code"] == CODE


def test_the_description_shows_the_bound(world: World) -> None:
    schemas = create_app(world.service).openapi()["components"]["schemas"]
    shown = f"{MAX_NUMBERS:,}"
    for schema, field in (("CompletionRequest", "stream"), ("ChatCompletionRequest", "stream"),
                          ("CompareRequest", "prompt_logprobs"), ("ScoreRequest", "continuations")):  # fmt: skip
        assert shown in schemas[schema]["properties"][field]["description"]


@asynccontextmanager
async def rounds() -> AsyncGenerator[list[None]]:
    """Grows by one with every round of the event loop."""
    taken: list[None] = []

    async def others() -> None:
        while True:
            taken.append(None)
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    yield taken
    running.cancel()


VALUES: list[Any] = [[], {}, [[]], [{}], [1] * 200, [[{"a": [{}] * 70}] * 3], None, "é\n"]


@pytest.mark.parametrize("value", VALUES)
async def test_pieces_are_the_whole(value: Any) -> None:
    body = {"id": "a", "choices": [{"index": 0, "x": value}, value], "usage": value}
    assert await encoded(body, Turns()) == JSONResponse(body).body
    assert json.loads(await encoded({}, Turns())) == {}


async def test_a_large_answer_is_written_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the encoder sees more than some entries, wherever the long list lies."""
    monkeypatch.setattr(turns, "TURN_S", -1.0)  # every piece takes longer
    long = [{"token": "a", "top_logprobs": [{"logprob": 0.5}] * 20}] * 1000
    async with rounds() as taken:
        for body in ({"choices": [{"logprobs": {"content": long}}]}, {"prompt_logprobs": long}):
            before = len(taken)
            assert await encoded(body, Turns()) == JSONResponse(body).body
            assert len(taken) - before > 1000 // writing.ITEMS


async def test_choices_are_put_together_beside_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = CompletionForm.whole
    async with rounds() as taken:

        def counted(self: CompletionForm, *given: Any) -> dict[str, Any]:
            seen.append(len(taken))
            return whole(self, *given)

        monkeypatch.setattr(CompletionForm, "whole", counted)
        answer = await world.post("/v1/completions", model="parrot", prompt="abc", max_tokens=2, n=6)
    assert answer.status_code == 200
    assert len(set(seen)) == 6, "the loop took a turn between any two choices"


async def test_a_long_choice_is_put_together_in_a_thread(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MANY_TOKENS", 5)
    in_loop: list[bool] = []
    form = CompletionForm.whole

    def whole(self: CompletionForm, *given: Any) -> dict[str, Any]:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            in_loop.append(False)
        else:
            in_loop.append(True)
        return form(self, *given)

    monkeypatch.setattr(CompletionForm, "whole", whole)
    for count in (3, 9):
        assert (await world.post("/v1/completions", **TEXT, max_tokens=count)).status_code == 200
    assert in_loop == [True, False]
    assert replies.beside_others is writing.beside_others


async def test_a_long_text_is_written_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", -1.0)
    body = {"prompt": '"é\\\n' * writing.CHARACTERS}
    async with rounds() as taken:
        assert await encoded(body, Turns()) == JSONResponse(body).body
        assert len(taken) > 4


async def test_an_echoed_prompt_is_put_together_and_written_beside_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in one chunk, with the log-probs and places of all of its tokens."""
    prompt: dict[str, Any] = {"model": "parrot", "prompt": "x" * 200, "max_tokens": 1}
    asked: dict[str, Any] = {**prompt, "echo": True, "logprobs": 2, "stream": True}
    usual = (await world.post("/v1/completions", **asked)).text
    monkeypatch.setattr(replies, "MANY_TOKENS", 100)
    monkeypatch.setattr(writing, "MANY_TOKENS", 100)
    in_loop: list[bool] = []
    offsets = forms.prompt_offsets

    def counted(*given: Any) -> tuple[int, ...]:
        in_loop.append(threading.current_thread() is threading.main_thread())
        return offsets(*given)

    monkeypatch.setattr(forms, "prompt_offsets", counted)
    monkeypatch.setattr(adapter, "encode", encode_small)
    text = (await world.post("/v1/completions", **asked)).text
    assert in_loop == [False]
    assert [one["choices"] for one in chunks_of(text)] == [one["choices"] for one in chunks_of(usual)]


def encode_small(chunk: dict[str, Any]) -> bytes:
    """No long chunk is written in one call."""
    written = encode(chunk)
    assert len(written) < 4096
    return written


async def test_detokenize_sends_back_so_much(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million ids of the longest token were 134 MB of text, built by as many clients as asked."""
    monkeypatch.setattr(tokens, "MAX_TEXT", 4)
    ids = world.service.registry.members["large"].tokenizer.encode("abcd")
    assert (await world.post("/detokenize", model="large", tokens=ids)).json() == {"prompt": "abcd"}
    refused = await world.post("/detokenize", model="large", tokens=[*ids, ids[0]])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tokens"
    assert "5 characters, at most 4" in refused.text


async def test_tokenize_sends_back_so_many_beside_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKEN_IDS", 1000)
    monkeypatch.setattr(turns, "TURN_S", -1.0)
    async with rounds() as taken:
        answer = await world.post("/tokenize", model="large", prompt="x" * 1000, return_token_strs=True)
        assert answer.json()["token_strs"] == ["x"] * 1000
        assert len(taken) > 2 * (1000 // writing.ITEMS)
    refused = await world.post("/tokenize", model="large", prompt="x" * 1001)
    assert refused.status_code == 400
    assert "1,001 tokens, at most 1,000" in refused.text
