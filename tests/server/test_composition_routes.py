"""/v1/score, /v1/compare and the tokenizer endpoints over the fake engine."""

from __future__ import annotations

from typing import cast

import pytest

from motet.server.shapes.answers import Comparison, ErrorBody, Scores, Tokenized
from tests.server.conftest import World
from tests.server.streams import chunks_of
from tests.server.test_chat import HELLO

PROXY = {"strategy": "proxy_tuning", "expert": "expert", "antiexpert": "small"}


async def test_score_equals_what_generation_reports(world: World) -> None:
    made = await world.post(
        "/v1/chat/completions",
        model="large-proxy",
        messages=HELLO,
        max_tokens=4,
        temperature=0,
        logprobs=True,
        return_token_ids=True,
        trace=True,
    )
    choice = made.json()["choices"][0]
    scored = await world.post(
        "/v1/score", model="large-proxy", messages=HELLO, continuations=[choice["token_ids"], "zq"]
    )
    body = Scores.model_validate(scored.json())
    assert body.data[0].token_logprobs == [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert body.data[0].is_greedy
    assert not body.data[1].is_greedy
    assert body.data[0].logprob == pytest.approx(sum(body.data[0].token_logprobs))
    for role in ("base", "expert", "antiexpert"):
        own = sum(entry["members"][role] for entry in choice["motet"]["trace"])
        assert body.data[0].members[role] == pytest.approx(own)


async def test_score_of_text_is_that_of_the_whole_text(world: World) -> None:
    scored = await world.post("/v1/score", model="large", prompt="Hel", continuations=["lo"], trace={"top": 1})
    echoed = await world.post("/v1/completions", model="large", prompt="Hello", max_tokens=0, echo=True, logprobs=0)
    entry = scored.json()["data"][0]
    assert entry["token_logprobs"] == echoed.json()["choices"][0]["logprobs"]["token_logprobs"][3:]
    assert len(entry["motet"]["trace"]) == 2


@pytest.mark.parametrize("own", [{"prompt": ""}, {"prompt": "Other"}, {"template": "chat"}, {"template": "plain"}])
async def test_a_base_that_reads_its_own_prompt_scores_the_continuation_alone(world: World, own: object) -> None:
    composition = {**PROXY, "base": {"model": "large"} | cast("dict[str, str]", own)}
    scored = await world.post(
        "/v1/score", composition=composition, prompt="Hel", continuations=["lo", list(b"lo"), "l", "o"]
    )
    texts, tokens, first, _ = Scores.model_validate(scored.json()).data
    ids = world.service.registry.members["large"].tokenizer.encode("lo")
    assert texts.token_ids == ids
    assert [len(entry.tokens) for entry in (texts, first)] == [2, 1]
    assert tokens.token_ids == list(b"lo")
    assert texts.token_logprobs[0] == first.token_logprobs[0]
    contexts = [request.contexts for request in world.engine.requests]
    assert len(set(contexts)) == 1


async def test_an_empty_prompt_begins_a_text(world: World) -> None:
    start = world.service.registry.members["large"].tokenizer.start_id
    prompts: list[tuple[object, int]] = [("", 1), ([], 1), ([""], 1), ([[]], 1), (["", "ab"], 3)]
    for prompt, count in prompts:
        made = await world.post("/v1/completions", model="large", prompt=prompt, max_tokens=1)
        assert made.json()["usage"]["prompt_tokens"] == count
    assert all(request.contexts[0][0] == start for request in world.engine.requests[:4])
    for prompt, _ in prompts[:2]:
        scored = await world.post("/v1/score", model="large", prompt=prompt, continuations=["a"])
        assert Scores.model_validate(scored.json()).data[0].tokens == ["a"]
    assert world.engine.requests[-1].contexts == ((start,),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"continuations": []}, "at least 1"),
        ({"continuations": [""]}, "at least 1"),
        ({"continuations": [[99999]]}, "not in the vocabulary"),
        ({"continuations": ["x" * 300]}, "maximum context length"),
        ({"messages": HELLO}, "either"),
        ({"prompt": None}, "either"),
        ({"model": "nobody"}, "does not exist"),
    ],
)
async def test_score_refuses(world: World, change: dict[str, object], said: str) -> None:
    response = await world.post("/v1/score", **{"model": "large", "prompt": "a", "continuations": ["b"]} | change)
    assert 400 <= response.status_code < 500
    assert said in ErrorBody.model_validate(response.json()).error.message
    assert world.service.admission.taken == 0


CANDIDATES = ["large", {"label": "tuned", "composition": PROXY}, "one-prompt"]


async def test_compare(world: World) -> None:
    response = await world.post(
        "/v1/compare",
        model="large",
        messages=HELLO,
        candidates=CANDIDATES,
        n=2,
        max_tokens=3,
        temperature=0,
        ignore_eos=True,
    )
    body = Comparison.model_validate(response.json())
    assert [candidate.label for candidate in body.candidates] == ["large", "tuned", "one-prompt"]
    assert [candidate.motet.strategy for candidate in body.candidates] == ["plain", "proxy_tuning", "product"]
    assert [[choice.index for choice in candidate.choices] for candidate in body.candidates] == [[0, 1]] * 3
    assert [candidate.usage.completion_tokens for candidate in body.candidates] == [6, 6, 6]
    alone = await world.post(
        "/v1/chat/completions", model="large-proxy", messages=HELLO, max_tokens=3, temperature=0, ignore_eos=True
    )
    assert response.json()["candidates"][1]["choices"][0]["message"] == alone.json()["choices"][0]["message"]


async def test_compare_streams(world: World) -> None:
    body = {"model": "large", "prompt": "Hi", "candidates": CANDIDATES, "max_tokens": 3, "temperature": 0}
    whole = (await world.post("/v1/compare", **body)).json()
    streamed = await world.post("/v1/compare", **body, stream=True, stream_options={"include_usage": True})
    chunks = chunks_of(streamed.text)
    for number, candidate in enumerate(whole["candidates"]):
        own = [chunk for chunk in chunks if chunk["candidate"] == number]
        assert "".join(chunk["choices"][0]["text"] for chunk in own) == candidate["choices"][0]["text"]
        assert {chunk["label"] for chunk in own} == {candidate["label"]}
    assert chunks[-1]["usage"]["completion_tokens"] == sum(c["usage"]["completion_tokens"] for c in whole["candidates"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"candidates": []}, "candidates"),
        ({"candidates": ["large", "nobody"]}, "candidates.1.model"),
        ({"candidates": [{"composition": {"strategy": "no"}}]}, "candidates.0.composition.strategy"),
        ({"composition": PROXY}, "composition"),
        ({"messages": HELLO}, "prompt"),
    ],
)
async def test_compare_refuses(world: World, change: dict[str, object], param: str) -> None:
    response = await world.post("/v1/compare", **{"model": "large", "prompt": "a", "candidates": ["large"]} | change)
    assert 400 <= response.status_code < 500
    assert ErrorBody.model_validate(response.json()).error.param == param


async def test_tokenize_and_back(world: World) -> None:
    response = await world.post(
        "/tokenize", model="large", prompt="Grüße", add_special_tokens=False, return_token_strs=True
    )
    body = Tokenized.model_validate(response.json())
    assert body.count == len(body.tokens) == 7
    assert body.max_model_len == 256
    assert body.token_strs is not None
    back = await world.post("/detokenize", model="small", tokens=body.tokens)
    assert back.json() == {"prompt": "Grüße"}


async def test_tokens_without_a_model_where_vocabularies_differ(world: World) -> None:
    """Harnesses written for servers of one model name none: they stop here rather than score another model's tokens."""
    answers = [
        await world.post("/tokenize", prompt="a"),
        await world.post("/detokenize", tokens=[65]),
        await world.client.get("/tokenizer_info"),
    ]
    for answer in answers:
        assert answer.status_code == 400
        error = ErrorBody.model_validate(answer.json()).error
        assert (error.param, error.code) == ("model", "missing_model")
        assert "large, small, expert, parrot, stranger" in error.message


async def test_tokenize_messages(world: World) -> None:
    response = await world.post("/tokenize", model="expert", messages=HELLO)
    back = await world.post("/detokenize", model="expert", tokens=response.json()["tokens"])
    assert back.json() == {"prompt": "<|user|>Hello<|assistant|>"}


async def test_tokenizer_info(world: World) -> None:
    info = (await world.client.get("/tokenizer_info", params={"model": "large"})).json()
    assert info["eos_token"] == "<|end|>"
    assert "add_generation_prompt" in info["chat_template"]
    other = await world.client.get("/tokenizer_info", params={"model": "nobody"})
    assert other.status_code == 404


async def test_tokenizer_refusals(world: World) -> None:
    for path, body in (
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": HELLO}),
        ("/tokenize", {"prompt": 1}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": "a"}),
    ):
        response = await world.post(path, model="large", **body)
        assert response.status_code == 400, (path, body)
        ErrorBody.model_validate(response.json())


@pytest.mark.parametrize(
    ("written", "layers"), [({}, [0, 2, 4]), ({"bucket": "high"}, [6, 8, 10]), ({"layers": [5, 1]}, [1, 5])]
)
async def test_a_layer_contrast_knows_the_layers_of_its_base(
    world: World, written: dict[str, object], layers: list[int]
) -> None:
    composition = {"strategy": "layer_contrast", **written}
    made = await world.post(
        "/v1/completions", model="large", prompt="Hi", composition=composition, max_tokens=2, trace=True
    )
    body = made.json()
    request = world.engine.requests[-1]
    assert [list(own.layers) for own in request.plan.exits] == [layers]
    assert request.contexts == request.contexts[:1] * 2
    for token in body["choices"][0]["motet"]["trace"]:
        assert token["layer"] == layers[-1]
        assert list(token["members"]) == ["base", "early"]
    told = {stream["role"]: stream["prompt_tokens"] for stream in body["motet"]["streams"]}
    assert told == {"base": len(request.contexts[0]), "early": 0}


async def test_several_layer_contrasts_have_a_layer_each(world: World) -> None:
    parts = [{"strategy": "layer_contrast", "layers": [layer], "mask": None} for layer in (3, 7)]
    made = await world.post("/v1/completions", model="large", prompt="Hi", composition={"compose": parts}, trace=True)
    assert {tuple(token["layer"]) for token in made.json()["choices"][0]["motet"]["trace"]} == {(3, 7)}


async def test_a_base_that_is_left_early_is_no_draft(world: World) -> None:
    for draft in ("base", "early", "large"):
        made = await world.post(
            "/v1/completions",
            model="large",
            prompt="Hi",
            composition={"strategy": "layer_contrast"},
            speculation={"draft": draft},
        )
        assert made.status_code == 400
        error = ErrorBody.model_validate(made.json()).error
        assert error.param == "speculation.draft"
        assert "ngram" in error.message
