"""The openai SDK as its users use it, against the real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal, cast

import httpx
import openai
import pytest
from openai import OpenAI, Stream
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

PROXY: dict[str, Any] = {
    "strategy": "proxy_tuning",
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}
MESSAGES: Any = [{"role": "user", "content": "Where was Lodry Vell born?"}]


def chat(client: OpenAI, **body: Any) -> ChatCompletion:
    return cast("Any", client.chat.completions).create(**body)


def complete(client: OpenAI, **body: Any) -> Completion:
    return cast("Any", client.completions).create(**body)


def stream(client: OpenAI, **body: Any) -> Stream[ChatCompletionChunk]:
    return cast("Any", client.chat.completions).create(**body, stream=True)


@pytest.fixture(scope="module")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_models_are_members_and_named_compositions(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"large", "small", "small-chat", "large-proxy", "large-unlearned"} <= names
    assert client.models.retrieve("large-proxy").id == "large-proxy"


def test_chat_streams_what_it_answers(client: OpenAI) -> None:
    fixed: dict[str, Any] = {"model": "large", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = chat(client, **fixed, extra_body={"composition": PROXY})
    streamed = stream(client, **fixed, extra_body={"composition": PROXY}, stream_options={"include_usage": True})
    chunks = list(streamed)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert whole.usage.completion_tokens <= 12


def test_a_composition_by_name_is_the_composition_by_request(client: OpenAI) -> None:
    fixed: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 12, "seed": 3, "logprobs": True, "top_logprobs": 3}
    named = chat(client, model="large-proxy", **fixed)
    sent = chat(
        client, model="large", **fixed, extra_body={"composition": {**PROXY, "base": {"model": "large", "prompt": ""}}}
    )
    assert named.choices[0].message.content == sent.choices[0].message.content
    assert named.choices[0].logprobs is not None
    assert sent.choices[0].logprobs is not None
    assert named.choices[0].logprobs.content is not None
    for one, other in zip(named.choices[0].logprobs.content, sent.choices[0].logprobs.content or [], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_alpha_zero_is_the_base(client: OpenAI) -> None:
    fixed: dict[str, Any] = {"model": "large", "prompt": "The river", "max_tokens": 16, "temperature": 0}
    base = complete(client, **fixed)
    shift = {"strategy": "proxy_tuning", "expert": "small-chat", "antiexpert": "small", "alpha": 0}
    shifted = complete(client, **fixed, extra_body={"composition": shift})
    assert base.choices[0].text == shifted.choices[0].text


def test_several_choices_and_prompts(client: OpenAI) -> None:
    answer = client.completions.create(
        model="large", prompt=["The river", "The town of"], n=2, max_tokens=6, seed=1, temperature=1.0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 1


def test_errors_are_the_sdks_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="large-prox"):
        client.chat.completions.create(model="large-prox", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="proxy_tunning") as refused:
        client.chat.completions.create(
            model="large", messages=MESSAGES, extra_body={"composition": {"strategy": "proxy_tunning"}}
        )
    assert refused.value.param == "composition.strategy"
    with pytest.raises(openai.BadRequestError, match=r"tools\.0\.function\.name"):
        client.chat.completions.create(
            model="large",
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "a b", "parameters": {}}}],
        )
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="large", prompt="river " * 5000, max_tokens=5)
    assert long.value.code == "context_length_exceeded"


def metric(url: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_a_client_that_goes_away_frees_its_slots(client: OpenAI, url: str) -> None:
    """Streaming and not; the requests would otherwise run for many tokens."""
    fixed: dict[str, Any] = {"model": "large-proxy", "messages": MESSAGES, "max_tokens": 100}
    streamed = stream(client, **fixed, extra_body={"ignore_eos": True})
    next(iter(streamed))
    streamed.close()
    impatient = client.with_options(timeout=0.05)

    def ask() -> None:
        with pytest.raises(openai.APITimeoutError):
            chat(impatient, **fixed, n=4, extra_body={"ignore_eos": True})

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert eventually(lambda: metric(url, "motet:num_requests_running") == 0)


def test_the_trace_names_every_voice(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="large-proxy", messages=MESSAGES, max_tokens=4, temperature=0, extra_body={"trace": True}
    )
    extension: Any = (answer.choices[0].model_extra or {})["motet"]
    first = extension["trace"][0]
    assert set(first["members"]) == {"base", "expert", "antiexpert"}
    assert first["kl"] >= 0


class Birth(BaseModel):
    town: Literal["Ay", "Bree"]
    certain: bool
    century: Literal[18, 19] | None


def test_answers_are_parsed_into_the_clients_own_classes(client: OpenAI) -> None:
    """The SDK's schema of a class, strict, over a composition whose members read different prompts."""
    for temperature in (0, 1):
        parsed = client.chat.completions.parse(
            model="large-proxy",
            messages=MESSAGES,
            response_format=Birth,
            temperature=temperature,
            max_tokens=100,
        )
        assert parsed.choices[0].finish_reason == "stop"
        assert isinstance(parsed.choices[0].message.parsed, Birth)
