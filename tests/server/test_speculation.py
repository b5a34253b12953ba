"""What a request may say of speculation, and what the engine hears of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from motet.engines.drafts import AUTO, OFF, Speculation
from motet.engines.drawn import is_drawn
from motet.engines.outputs import EngineStats
from tests.server.conftest import World

PROXY: dict[str, Any] = {"model": "large-proxy", "prompt": "Hi", "max_tokens": 2}


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        (None, None),
        ("off", OFF),
        ("auto", AUTO),
        ({}, Speculation()),
        ({"draft": "antiexpert", "tokens": 3}, Speculation("antiexpert", 3)),
        ({"draft": "small"}, Speculation("small")),
        ({"draft": "ngram"}, Speculation("ngram")),
    ],
)
async def test_what_the_engine_hears(world: World, written: Any, heard: Speculation | None) -> None:
    response = await world.post("/v1/completions", **PROXY, speculation=written)
    assert response.status_code == 200, response.text
    assert world.engine.requests[-1].speculation == heard


@pytest.mark.parametrize(
    ("written", "param", "said"),
    [
        ({"draft": "antiexprt"}, "speculation.draft", "Did you mean 'antiexpert'?"),
        ({"draft": "stranger"}, "speculation.draft", "base, expert, antiexpert, large, small, ngram"),
        ({"tokens": 0}, "speculation", "1"),
        ({"tokens": 9}, "speculation", "8"),
        ({"token": 4}, "speculation", "token"),
        ("on", "speculation", "'auto' or 'off'"),
    ],
)
async def test_what_is_refused(world: World, written: Any, param: str, said: str) -> None:
    response = await world.post("/v1/completions", **PROXY, speculation=written)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert said in error["message"]
    assert not world.engine.requests


async def test_metrics_count_guesses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stats: EngineStats = replace(
        world.engine.stats(), drafts=5, draft_tokens=20, accepted_tokens=11, accepted_at=(5, 4, 2)
    )
    monkeypatch.setattr(world.engine, "stats", lambda: stats)
    text = (await world.client.get("/metrics")).text
    assert "motet:spec_decode_num_drafts_total 5.0" in text
    assert "motet:spec_decode_num_draft_tokens_total 20.0" in text
    assert "motet:spec_decode_num_accepted_tokens_total 11.0" in text
    assert 'motet:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 4.0' in text


MIXED: dict[str, Any] = {"strategy": "mixture", "members": ["large", "small"]}


@pytest.mark.parametrize(
    ("wished", "drawn"),
    [
        ({}, True),
        ({"speculation": "off", "stop": ["x"], "n": 2}, True),
        ({"logprobs": 0}, False),
        ({"prompt_logprobs": 1}, False),
        ({"trace": True}, False),
        ({"seed": 4}, False),
        ({"temperature": 0.9}, False),
        ({"speculation": {"draft": "base"}}, False),
        ({"composition": {"strategy": "product", "members": ["large", "small"]}}, False),
    ],
)
async def test_answers_say_that_their_tokens_are_drawn_member_by_member(
    world: World, monkeypatch: pytest.MonkeyPatch, wished: dict[str, Any], drawn: bool
) -> None:
    body = {"model": "large", "prompt": "Hi", "max_tokens": 2, "composition": MIXED, **wished}
    assert "drawn_by_member" not in (await world.post("/v1/completions", **body)).json()["motet"], "not by this engine"
    monkeypatch.setattr(world.engine, "draws_members", is_drawn, raising=False)
    response = await world.post("/v1/completions", **body)
    assert response.status_code == 200, response.text
    assert response.json()["motet"].get("drawn_by_member", False) is drawn
    assert is_drawn(world.engine.requests[-1]) is drawn
