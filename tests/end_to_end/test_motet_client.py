"""`motet-client` with the real openai SDK against the real server: the same answers as fields written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from motet_client import (
    BaseObject,
    Composed,
    ProxyTuning,
    RoleObject,
    StreamUse,
    TracedToken,
    TraceOptions,
    compose,
    composed,
    traced,
)
from motet_client.answer import Alternative
from tests.end_to_end.test_clients import COMPOSITION, QUESTION, asked

TYPED = ProxyTuning(
    base=BaseObject(model="large", prompt=""),
    expert="small-chat",
    antiexpert=RoleObject(model="small", prompt=""),
)
MESSAGES = [ChatCompletionUserMessageParam(role="user", content=QUESTION["content"])]


@pytest.fixture(scope="module")
def sdk(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def has_keys(kind: type, value: Mapping[str, Any]) -> None:
    """What the class says is there, and nothing else."""
    required: frozenset[str] = vars(kind)["__required_keys__"]
    assert required <= value.keys() <= get_type_hints(kind).keys()


def test_the_answer_is_that_of_the_fields_written_by_hand(sdk: OpenAI, url: str) -> None:
    by_hand = asked(url, model="large", composition=COMPOSITION, trace={"top": 2, "members": True})
    answer = sdk.chat.completions.create(
        model="large",
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        **compose(TYPED, trace=TraceOptions(top=2, members=True)),
    )
    assert answer.choices[0].message.content == by_hand["message"]["content"]
    assert composed(answer)["strategy"] == "proxy_tuning"
    assert [stream["model"] for stream in composed(answer)["streams"]] == ["large", "small-chat", "small"]
    tokens = traced(answer.choices[0])
    assert [token["token"] for token in tokens] == [token["token"] for token in by_hand["motet"]["trace"]]
    has_keys(Composed, composed(answer))
    has_keys(StreamUse, composed(answer)["streams"][0])
    has_keys(TracedToken, tokens[0])
    has_keys(Alternative, tokens[0].get("alternatives", [])[0])


def test_streamed(sdk: OpenAI, url: str) -> None:
    by_hand = asked(url, model="large", composition=COMPOSITION)["message"]["content"]
    chunks = list(
        sdk.chat.completions.create(
            model="large",
            messages=MESSAGES,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
            **compose(TYPED, trace=True),
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == by_hand
    assert composed(chunks[-1])["strategy"] == "proxy_tuning"
    assert len([token for chunk in chunks if chunk.choices for token in pieces(chunk.choices[0])]) == tokens_of(
        chunks[-1]
    )


def pieces(choice: Any) -> list[TracedToken]:
    return traced(choice) if hasattr(choice, "motet") else []


def tokens_of(chunk: Any) -> int:
    return chunk.usage.completion_tokens


def test_no_trace_was_asked_for(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="large", messages=MESSAGES, max_tokens=1, **compose(TYPED))
    with pytest.raises(ValueError, match="ask for one"):
        traced(answer.choices[0])
