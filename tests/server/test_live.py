"""What only a real socket shows: bytes of a stream, clients that leave, shutting down, the openai SDK."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable

import httpx
import openai
import pytest

from motet.server.serve import DrainingServer
from motet.server.service import Service
from tests.fakes import FakeEngine
from tests.server.conftest import listening, make_service

CHAT = {"model": "large", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "ignore_eos": True}
PROXY = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "small"}
Live = tuple[str, Service, FakeEngine, DrainingServer]


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    service = make_service(keep_alive_seconds=0.05, drain_seconds=0.3)
    assert isinstance(service.engine, FakeEngine)
    async with listening(service) as (url, server):
        yield url, service, service.engine, server
        service.engine.gate.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (the fake engine has no event for it)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slots(live: Live, stream: bool) -> None:
    url, service, engine, _ = live
    engine.step_seconds = 0.005
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT | {"stream": stream, "n": 3}))
        await until(lambda: engine.steps > 5)
        asking.cancel()
        await until(lambda: not engine.open)
    await until(lambda: service.admission.taken == 0)
    assert engine.steps < 100


async def test_a_client_that_leaves_while_nothing_is_computed(live: Live) -> None:
    url, service, engine, _ = live
    engine.gate.clear()
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json={"model": "large", "prompt": "x"}))
        await until(lambda: bool(engine.open))
        asking.cancel()
        await until(lambda: not engine.open)
    await until(lambda: service.admission.taken == 0)
    assert engine.steps == 0


async def test_bytes_of_a_stream(live: Live) -> None:
    url, service, engine, _ = live
    engine.scripts["parrot"] = service.registry.members["parrot"].tokenizer.encode("é")
    body = CHAT | {"model": "parrot", "stream": True, "ignore_eos": False}
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    first, text, end, done, rest = response.content.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert '{"content":"é"}'.encode() in text
    assert b'"finish_reason":"stop"' in end
    assert (done, rest) == (b"data: [DONE]", b"")


async def test_keep_alive_comments_while_nothing_comes(live: Live) -> None:
    url, _, engine, _ = live
    engine.gate.clear()
    async with (
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/completions", json={"model": "large", "prompt": "x", "stream": True}) as response,
    ):
        parts = response.aiter_bytes()
        assert await anext(parts) == b": keep-alive\n\n"
        assert await anext(parts) == b": keep-alive\n\n"
        engine.gate.set()
        assert b"".join([part async for part in parts]).endswith(b"data: [DONE]\n\n")


async def test_sigterm_drains(live: Live) -> None:
    """Not ready, no new requests, running ones end, then the server leaves by itself."""
    url, service, engine, server = live
    engine.gate.clear()
    async with httpx.AsyncClient(base_url=url) as client:
        running = asyncio.create_task(client.post("/v1/completions", json={"model": "large", "prompt": "x"}))
        await until(lambda: bool(engine.open))
        server.handle_exit(signal.SIGTERM, None)
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        refused = await client.post("/v1/completions", json={"model": "large", "prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        engine.gate.set()
        assert (await running).status_code == 200
        await until(lambda: server.should_exit)
    assert engine.closed
    assert service.admission.taken == 0


async def test_draining_has_an_end(live: Live) -> None:
    """What still runs after `drain_seconds` is aborted with an error in the documented shape."""
    url, _, engine, server = live
    engine.gate.clear()
    async with httpx.AsyncClient(base_url=url) as client:
        running = asyncio.create_task(client.post("/v1/completions", json={"model": "large", "prompt": "x"}))
        await until(lambda: bool(engine.open))
        server.handle_exit(signal.SIGTERM, None)
        response = await running
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["error"]["code"] == "engine_stopped"


async def test_a_second_signal_leaves_at_once(live: Live) -> None:
    url, _, engine, server = live
    engine.gate.clear()
    async with httpx.AsyncClient(base_url=url) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json={"model": "large", "prompt": "x"}))
        await until(lambda: bool(engine.open))
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit
        assert server.force_exit
        asking.cancel()


def sdk(url: str, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries)


async def test_sdk_chat(live: Live) -> None:
    url, service, engine, _ = live
    engine.scripts["parrot"] = service.registry.members["parrot"].tokenizer.encode("Good day")
    async with sdk(url) as client:
        answer = await client.chat.completions.create(
            model="parrot",
            messages=[{"role": "user", "content": "Hi"}],
            n=2,
            logprobs=True,
            top_logprobs=1,
        )
    assert [choice.message.content for choice in answer.choices] == ["Good day", "Good day"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.choices[0].logprobs is not None


async def test_sdk_streams_a_composition(live: Live) -> None:
    url, _, _, _ = live
    async with sdk(url) as client:
        stream = await client.chat.completions.create(
            model="large",
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"composition": PROXY, "ignore_eos": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_sdk_completions_and_models(live: Live) -> None:
    url, _, _, _ = live
    async with sdk(url) as client:
        answer = await client.completions.create(model="large-proxy", prompt=["a", "b"], max_tokens=2, logprobs=1)
        names = [model.id async for model in client.models.list()]
        card = await client.models.retrieve("large-proxy")
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert names[-2:] == ["large-proxy", "one-prompt"]
    assert card.to_dict()["parent"] == "large"


async def test_sdk_errors(live: Live) -> None:
    url, _, engine, _ = live
    async with sdk(url) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="lagre", prompt="x")
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.completions.create(model="large", prompt="x", extra_body={"composition": {"strategy": "?"}})
        engine.fail_after = 0
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="large", prompt="x")
        stream = await client.completions.create(model="large", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="failed in a step"):
            _ = [chunk async for chunk in stream]
    assert missing.value.code == "model_not_found"
    assert wrong.value.param == "composition.strategy"


async def test_sdk_retries_when_the_queue_was_full(live: Live) -> None:
    url, service, _, _ = live
    place = service.admission.reserve(service.admission.max_choices)
    async with sdk(url, retries=2) as client:
        asking = asyncio.create_task(client.completions.create(model="large", prompt="x", max_tokens=1))
        await asyncio.sleep(0.2)
        assert not asking.done()
        place.release()
        answer = await asking
    assert len(answer.choices) == 1
