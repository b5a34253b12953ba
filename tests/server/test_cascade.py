"""Strategy `cascade` per request: the small model's answer is judged as a whole, on every endpoint that answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.composers.vocabulary import read_vocabulary
from motet.engines.torch import TorchEngine, load_member
from motet.operator.access import Access
from motet.operator.loaded import LoadedModel
from motet.operator.policies import PolicyConfig
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import byte_tokenizer, toy_logprobs
from tests.policies.asking import of
from tests.server.conftest import MakeWorld, World, listening, make_service
from tests.server.streams import chunks_of
from tests.server.test_live import until
from tests.tiny import save_with

Floats = NDArray[np.float64]
TOKENIZER = byte_tokenizer()
TEXT = "Where does the Oze"
CASCADE: dict[str, Any] = {"strategy": "cascade", "per": "request", "small": "small"}
SURE, UNSURE = CASCADE | {"threshold": 0}, CASCADE | {"threshold": 1}
GREEDY: dict[str, Any] = {"model": "large", "prompt": TEXT, "temperature": 0, "max_tokens": 6, "return_token_ids": True}
TOLERANCE = 1e-4
AGGREGATES: list[tuple[str, float | None]] = [
    ("mean", None),
    ("sum", None),
    ("quantile", None),
    ("quantile", 0.3),
    ("first", None),
]


def aggregated(values: Floats, aggregate: str, quantile: float | None) -> float:
    """What the paper makes of the tokens' log-probs: Chow-Average, -Sum, -Quantile; of leads and entropies as well."""
    match aggregate:
        case "mean":
            return float(values.mean())
        case "sum":
            return float(values.sum())
        case "quantile":
            return float(np.quantile(values, quantile or 0.0))
        case _:
            return float(values[0])


def confidence(rows: Sequence[Floats], measure: str, aggregate: str, quantile: float | None) -> float:
    """Of an answer that was drawn behind these distributions (tokens, V), as log-probs."""
    ranked = np.sort(np.exp(np.stack(rows)))[:, ::-1]
    match measure:
        case "max_prob":
            return float(np.exp(aggregated(np.log(ranked[:, 0]), aggregate, quantile)))
        case "margin":
            return aggregated(ranked[:, 0] - ranked[:, 1], aggregate, quantile)
        case _:
            return -aggregated(np.sum(ranked * np.log(ranked), -1), aggregate, quantile)  # the least sure has most


def toy_rows(model: str, tokens: Sequence[int], text: str = TEXT) -> list[Floats]:
    """The fake model's log-probs behind the prompt and behind each of its tokens but the last."""
    ids = TOKENIZER.encode(text)
    return [toy_logprobs(model, tuple([*ids, *tokens[:i]][-3:]), TOKENIZER.size) for i in range(len(tokens))]


async def answer(world: World, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    response = await world.post(path, **GREEDY | body)
    assert response.status_code == 200, response.text
    return response.json()


CASES = [
    (measure, aggregate, quantile)
    for measure in ("max_prob", "margin", "entropy")
    for aggregate, quantile in AGGREGATES
    if (measure, aggregate) != ("margin", "sum")
]


@pytest.mark.parametrize(("measure", "aggregate", "quantile"), CASES)
async def test_it_is_the_paper_s_formula(world: World, measure: str, aggregate: str, quantile: float | None) -> None:
    """Told are the formula's numbers, and whoever they name answers as if it had been asked alone."""
    asked = {key: value for key, value in (("aggregate", aggregate), ("quantile", quantile)) if value is not None}
    small, large = await answer(world, model="small", logprobs=2), await answer(world, logprobs=2)
    tokens = small["choices"][0]["token_ids"]
    expected = confidence(toy_rows("small", tokens), measure, aggregate, quantile)
    for threshold in (expected * 0.999, expected * 1.001):
        composition = CASCADE | asked | {"measure": measure, "threshold": threshold}
        world.engine.requests.clear()
        body = await answer(world, logprobs=2, composition=composition)
        kept = (expected <= threshold) if measure == "entropy" else (expected >= threshold)
        assert body["choices"] == (small if kept else large)["choices"]
        assert body["usage"] == (small if kept else large)["usage"]
        assert [r.plan.streams[0].model for r in world.engine.requests] == ["small"] + ["large"] * (not kept)
        (told,) = body["motet"]["cascade"]
        assert (told["index"], told["role"]) == (0, "small" if kept else "base")
        assert (told["model"], told["threshold"]) == ("small" if kept else "large", threshold)
        decided_early = not kept and (aggregate == "first" or (aggregate == "quantile" and quantile is None))
        assert 0 < told["discarded_tokens"] <= len(tokens) if not kept else told["discarded_tokens"] == 0
        if aggregate == "first" and not kept:
            assert told["discarded_tokens"] == 1
        assert told["discarded_tokens"] in (0, len(tokens)) or decided_early
        assert told["confidence"] == pytest.approx(expected, abs=1e-9)
        assert not world.engine.open


@pytest.mark.parametrize("measure", ["max_prob", "margin", "entropy"])
async def test_at_its_ends_one_model_answers_alone(world: World, measure: str) -> None:
    """Greedy and drawn: the same tokens and log-probs, bit by bit."""
    for temperature in (0, 1):
        asked: dict[str, Any] = {"temperature": temperature, "seed": 3, "n": 3, "logprobs": 1}
        for threshold in (0, 100 if measure == "entropy" else 1):
            body = await answer(world, composition=CASCADE | {"measure": measure, "threshold": threshold}, **asked)
            alone = "small" if (threshold == 0) == (measure != "entropy") else "large"
            assert body["choices"] == (await answer(world, **asked | {"model": alone}))["choices"]
            assert [told["model"] for told in body["motet"]["cascade"]] == [alone] * 3


async def test_every_choice_is_judged_by_itself(world: World) -> None:
    asked: dict[str, Any] = {"n": 4, "temperature": 1, "seed": 5, "logprobs": 1}
    small, large = await answer(world, model="small", **asked), await answer(world, **asked)
    sure = [confidence(toy_rows("small", choice["token_ids"]), "max_prob", "mean", None) for choice in small["choices"]]
    threshold = float(np.median(sure))
    world.engine.requests.clear()
    body = await answer(world, composition=CASCADE | {"threshold": threshold}, **asked)
    assert len(world.engine.requests) == 2, "those that were not sure are answered together"
    for i, choice in enumerate(body["choices"]):
        expected = small if sure[i] >= threshold else large
        assert choice == expected["choices"][i], "whoever answers draws what it would have drawn alone"
    told = body["motet"]["cascade"]
    assert [one["index"] for one in told] == [0, 1, 2, 3]
    assert [one["confidence"] for one in told] == pytest.approx(sure, abs=1e-9)
    assert sorted(one["model"] for one in told) == ["large", "large", "small", "small"]
    said = sum(len(choice["token_ids"]) for choice in body["choices"])
    assert body["usage"]["completion_tokens"] == said
    assert body["usage"]["prompt_tokens"] == len(TOKENIZER.encode(TEXT)), "what the client sent, once"
    read = {stream["role"]: stream["prompt_tokens"] for stream in body["motet"]["streams"]}
    assert read == dict.fromkeys(("small", "base"), len(TOKENIZER.encode(TEXT)))


async def test_every_prompt_of_a_list_is_judged_by_itself(world: World) -> None:
    prompts = ["Ada", "Oze flows", "Umbrel"]
    small = await answer(world, model="small", prompt=prompts)
    sure = [
        confidence(toy_rows("small", choice["token_ids"], text), "max_prob", "mean", None)
        for choice, text in zip(small["choices"], prompts, strict=True)
    ]
    threshold = 0.999 * float(np.median(sure))
    body = await answer(world, prompt=prompts, composition=CASCADE | {"threshold": threshold})
    large = await answer(world, prompt=prompts)
    for i, value in enumerate(sure):
        assert body["choices"][i] == (small if value >= threshold else large)["choices"][i]


async def test_what_stands_behind_a_stop_is_not_judged(world: World) -> None:
    world.script("small", "yes, it does")
    body = await answer(world, stop=[","], max_tokens=12, composition=UNSURE | {"measure": "entropy", "threshold": 1})
    assert body["choices"][0]["text"] == "yes"
    assert body["choices"][0]["stop_reason"] == ","
    await until(lambda: not world.engine.open)


async def test_an_answer_that_was_begun_is_judged_by_what_is_drawn(world: World) -> None:
    begun: dict[str, Any] = {"answer_prefix": "To the", "logprobs": 1}
    small, large = await answer(world, model="small", **begun), await answer(world, **begun)
    ids = TOKENIZER.encode("To the")
    drawn = small["choices"][0]["token_ids"][len(ids) :]
    expected = confidence(toy_rows("small", drawn, TEXT + "To the"), "max_prob", "mean", None)
    for composition, alone in ((SURE, small), (UNSURE, large)):
        body = await answer(world, composition=composition, **begun)
        assert body["choices"] == alone["choices"]
        assert body["motet"]["cascade"][0]["confidence"] == pytest.approx(expected, abs=1e-9)


async def test_nothing_is_streamed_before_it_is_known_who_answers(world: World) -> None:
    for composition, model in ((SURE, "small"), (UNSURE, "large")):
        alone = await answer(world, model=model, echo=True)
        world.engine.gate.clear()
        asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "echo": True}
        streaming = asyncio.create_task(world.post("/v1/completions", **GREEDY | asked, composition=composition))
        await until(lambda: len(world.engine.requests) > 0)
        world.engine.gate.set()
        chunks = chunks_of((await streaming).text)
        assert "".join(part["text"] for c in chunks for part in c["choices"]) == alone["choices"][0]["text"]
        assert chunks[-1]["motet"]["cascade"][0]["model"] == model
        assert chunks[-1]["usage"] == alone["usage"]


async def test_a_held_answer_is_kept_alive_and_a_large_one_streams() -> None:
    """Over a socket: comments while the small model writes, then the large model's tokens as they come."""
    service = make_service(keep_alive_seconds=0.05)
    engine: Any = service.engine
    engine.step_seconds = 0.03
    async with listening(service) as (base, _), httpx.AsyncClient(base_url=base, timeout=30) as client:
        body = GREEDY | {"stream": True, "composition": UNSURE}
        lines: list[str] = []
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                    assert len(engine.requests) == 2
                    assert engine.open, "the large model still writes"
                    break
    assert any(line.startswith(":") for line in lines)
    await until(lambda: not engine.open)


async def test_a_client_that_leaves_ends_either_model(world: World) -> None:
    service = make_service()
    engine: Any = service.engine
    engine.step_seconds = 0.02
    async with listening(service) as (base, _):
        for running in (1, 2):
            engine.requests.clear()
            async with httpx.AsyncClient(base_url=base, timeout=30) as client:
                asking = asyncio.create_task(client.post("/v1/completions", json=GREEDY | {"composition": UNSURE}))
                await until(lambda count=running: len(engine.requests) == count)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            await until(lambda: not engine.open)
    assert service.admission.taken == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "model": "large"}),
        ("/v1/responses", {"input": TEXT, "model": "large"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": TEXT}], "model": "large", "max_tokens": 5}),
        ("/v1/compare", {"prompt": TEXT, "model": "large", "max_tokens": 5}),
    ],
)
@pytest.mark.parametrize("model", ["large", "expert"])
async def test_every_endpoint_that_answers(world: World, path: str, body: dict[str, Any], model: str) -> None:
    """Each model reads the prompt in its own template."""
    composition = {**CASCADE, "small": "expert", "threshold": int(model == "large")}
    asked = body | (
        {"candidates": [{"composition": composition}]} if "compare" in path else {"composition": composition}
    )
    response = await world.post(path, temperature=0, **asked)
    assert response.status_code == 200, response.text
    found = response.json()
    if "compare" in path:
        (found,) = found["candidates"]
        assert found["model"] == "large"
    assert found["motet"]["cascade"][0]["model"] == model
    contexts = [TOKENIZER.decode(request.contexts[0]) for request in world.engine.requests]
    reads_template = f"<|user|>{TEXT}<|assistant|>" if "compare" not in path else TEXT
    assert contexts == [reads_template, TEXT][: 1 + (model == "large")]


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("/v1/score", {"continuations": ["x"], "composition": CASCADE}, "composition", "take per 'token'"),
    ("/v1/completions", {"prompt_logprobs": 1, "composition": CASCADE}, "prompt_logprobs", "'small' or 'large'"),
    ("/v1/completions", {"echo": True, "logprobs": 1, "composition": CASCADE}, "echo", "leave 'echo' out"),
    ("/v1/completions", {"max_tokens": 0, "echo": True, "composition": CASCADE}, "max_tokens", "one token"),
    ("/v1/completions", {"composition": CASCADE | {"schedule": {"warmup": 3}}}, "composition", "schedule counts"),
    ("/v1/completions", {"composition": CASCADE | {"per": "token", "aggregate": "mean"}}, "composition", "per 'req"),
    ("/v1/completions", {"composition": CASCADE | {"quantile": 0.5}}, "composition", "aggregate 'quantile'"),
    (
        "/v1/completions",
        {"composition": CASCADE | {"measure": "margin", "aggregate": "sum"}},
        "composition",
        "aggregate 'mean'",
    ),
    ("/v1/completions", {"composition": CASCADE | {"aggregate": "meen"}}, "composition.aggregate", "'mean'"),
    ("/v1/completions", {"composition": CASCADE | {"threshold": 1.5}}, "composition", "at most 1"),
    (
        "/v1/completions",
        {"composition": CASCADE | {"aggregate": "quantile", "quantile": 1.1}},
        "composition.quantile",
        "1",
    ),
    ("/v1/completions", {"composition": CASCADE | {"small": "stranger"}}, "composition", "token"),
    ("/v1/completions", {"composition": {"compose": [CASCADE]}}, "composition.compose.0", "cannot be stacked"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), REFUSED)
async def test_what_is_not_served_is_refused_before_anything_runs(
    world: World, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = await world.post(path, **{"model": "large", "prompt": TEXT, **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]
    assert not world.engine.requests


async def test_a_held_answer_has_the_bounds_of_a_whole_one(make_world: MakeWorld) -> None:
    world = make_world()
    world.engine.kv_bytes_budget = 1 << 30
    members: Any = world.service.registry.members
    for name in ("large", "small"):
        members[name] = replace(members[name], info=replace(members[name].info, max_model_len=1 << 20))
    asked: dict[str, Any] = {"stream": True, "logprobs": 5, "n": 64, "max_tokens": 40_000}
    response = await world.post("/v1/completions", **GREEDY | asked, composition=CASCADE)
    assert response.status_code == 400
    assert "stream" not in response.json()["error"]["message"]


async def under(allow: dict[str, Any], **body: Any) -> httpx.Response:
    service = make_service(api_keys=["client: c"])
    rules = {
        "keys": ["client"],
        "models": ["large", "small"],
        "allow": {"compositions": True, "completions": True} | allow,
    }
    access = Access.of(service.config, {"public": PolicyConfig.model_validate(rules)})
    transport = httpx.ASGITransport(app=create_app(service.renewed(service.registry, access)))
    async with httpx.AsyncClient(transport=transport, base_url="http://motet") as client:
        asked = {"model": "large", "prompt": TEXT, "max_tokens": 3, "composition": SURE} | body
        return await client.post("/v1/completions", json=asked, headers=of("c"))


async def test_policies_close_who_answered_and_how_sure_it_was() -> None:
    assert (await under({})).json()["motet"] == {}
    (told,) = (await under({"members": True})).json()["motet"]["cascade"]
    assert told == {"index": 0, "role": "small", "model": "small", "discarded_tokens": 0}
    (told,) = (await under({"members": True, "logprobs": 1})).json()["motet"]["cascade"]
    assert told["confidence"] == round(told["confidence"], 1)
    (told,) = (await under({"members": True, "logprobs": 1, "exact_logprobs": True})).json()["motet"]["cascade"]
    assert told["confidence"] != round(told["confidence"], 1)
    assert (await under({"compositions": False})).status_code == 403
    unknown = await under({}, composition=CASCADE | {"small": "expert"})
    assert unknown.status_code == 400


async def test_what_was_given_up_is_paid_for_and_counted(make_world: MakeWorld) -> None:
    world = make_world(api_keys=["client: c"], max_tokens_per_minute_per_key=100_000)
    spent: list[int] = []
    world.service.admission.spend = lambda tokens, key: spent.append(tokens)  # type: ignore[method-assign]
    for composition, times in ((SURE, 1), (UNSURE, 2)):
        spent.clear()
        body = GREEDY | {"composition": composition}
        response = await world.client.post("/v1/completions", json=body, headers=of("c"))
        assert response.status_code == 200
        assert sum(spent) == times * (len(TOKENIZER.encode(TEXT)) + GREEDY["max_tokens"])
    metrics = (await world.client.get("/metrics", headers=of("c"))).text
    assert 'motet:cascade_answers_total{role="small"} 1.0' in metrics
    assert 'motet:cascade_answers_total{role="base"} 1.0' in metrics


# What follows computes.


class Reference:
    """One model in float64, whole forwards, no cache: nothing of the server's is used."""

    def __init__(self, folder: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @torch.no_grad()
    def answer(self, ids: Sequence[int], count: int, temperature: float) -> tuple[list[int], list[Floats]]:
        """Greedy tokens, and the distributions (tokens, V) that they are the most likely of."""
        new: list[int] = []
        rows: list[Floats] = []
        for _ in range(count):
            logits = self.model(torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1]
            rows.append((logits / temperature).log_softmax(-1).numpy())
            new.append(int(rows[-1].argmax()))
        return new, rows


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cascade")
    for seed, name in enumerate(("large", "small")):
        torch.manual_seed(seed)
        save_with(folder / name, TOKENIZER)
    return {name: folder / name for name in ("large", "small")}


@pytest.fixture
async def computing(folders: dict[str, Path]) -> AsyncIterator[httpx.AsyncClient]:
    engine = TorchEngine({name: load_member(name, str(path), dtype=torch.float32) for name, path in folders.items()})
    vocabulary = read_vocabulary(TOKENIZER.hf, TOKENIZER.size)
    loaded = {name: LoadedModel(info, TOKENIZER, vocabulary, "plain", name) for name, info in engine.models.items()}
    service = Service.assemble(ServerConfig.model_validate({"port": 0}), engine, Registry(loaded, {}))
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=120) as client:
        yield client
    await engine.close()


async def test_the_engine_s_own_numbers_in_a_mixed_batch(
    computing: httpx.AsyncClient, folders: dict[str, Path]
) -> None:
    """All measures at once, beside others: the formula's confidence, and the answer of whoever it names."""
    small, large = Reference(folders["small"]), Reference(folders["large"])
    ids = TOKENIZER.encode(TEXT)
    first, first_rows = small.answer(ids, 6, 0.5)
    second, second_rows = large.answer(ids, 6, 1.0)
    bodies: list[dict[str, Any]] = []
    expected: list[tuple[float, bool]] = []
    for number, (measure, aggregate, quantile) in enumerate(CASES):
        value = confidence(first_rows, measure, aggregate, quantile)
        kept = number % 2 == 0
        own = {
            "measure": measure,
            "aggregate": aggregate,
            "threshold": value * (0.99 if kept != (measure == "entropy") else 1.01),
        }
        own |= {} if quantile is None else {"quantile": quantile}
        composition = CASCADE | own | {"small": {"model": "small", "temperature": 0.5}}
        bodies.append(GREEDY | {"ignore_eos": True, "logprobs": 0, "composition": composition})
        expected.append((value, kept))
    others = [{"strategy": "mixture", "members": ["large", "small"]}, {"strategy": "guidance", "scale": 1.5}]
    bodies += [GREEDY | {"logprobs": 2, "composition": composition} for composition in others]
    answers = await asyncio.gather(*(computing.post("/v1/completions", json=body) for body in bodies))
    assert all(response.status_code == 200 for response in answers)
    for response, (value, kept) in zip(answers, expected, strict=False):
        body = response.json()
        (told,), (choice,) = body["motet"]["cascade"], body["choices"]
        assert told["role"] == ("small" if kept else "base")
        assert told["confidence"] == pytest.approx(value, abs=TOLERANCE)
        tokens, rows = (first, first_rows) if kept else (second, second_rows)
        assert choice["token_ids"] == tokens
        logprobs = [float(row[token]) for row, token in zip(rows, tokens, strict=True)]
        np.testing.assert_allclose(choice["logprobs"]["token_logprobs"], logprobs, rtol=0, atol=TOLERANCE)
