"""Soft prompts in the engine: what transformers computes over their embeddings, and what a text of the same embeddings
would; slots, prefixes and limits count them, requests do not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.composers.plan import Plan, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import GenerationRequest, RequestTooLarge, SamplingParams
from motet.engines.drafts import NGRAM, Speculation
from motet.engines.torch import EngineSettings, Member, SoftPrompt, TorchEngine, soft_prompt
from motet.engines.torch.choice import choices_of
from motet.engines.torch.soft_prompts import reads_embeddings
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import assert_same
from tests.engines.test_rules import run, scored_and_drawn, text_of
from tests.tiny import MAKERS

TOKENS = 11
ANSWER = 3
request_for = partial(scored_and_drawn, max_tokens=ANSWER)
BACKBONES = {"one": "llama", "two": "llama", "windowed": "mistral", "scaled": "gemma", "placed": "gpt2"}
COMPOSITIONS: list[tuple[str, dict[str, Any]]] = [
    ("one", {"strategy": "mixture", "members": ["one", {"model": "two", "weight": 0.4}]}),
    ("one", {"strategy": "proxy_tuning", "expert": "scaled", "antiexpert": "llama"}),
    ("llama", {"strategy": "discriminator", "wanted": "one", "unwanted": "two", "omega": 3, "mass": 1}),
]


class Read:
    """A model over the embeddings of a soft prompt and of the ids, in float64; logits of the ids alone."""

    def __init__(self, model: PreTrainedModel, rows: Tensor | None) -> None:
        self.model = copy.deepcopy(model).double()
        self.rows = torch.empty(0, model.config.get_text_config().hidden_size) if rows is None else rows

    def __call__(self, ids: Tensor, *, use_cache: bool) -> SimpleNamespace:
        embedded = torch.cat([self.rows.double()[None], self.model.get_input_embeddings()(ids)], 1)
        logits: Tensor = self.model(inputs_embeds=embedded, use_cache=use_cache).logits
        return SimpleNamespace(logits=logits[:, len(self.rows) :])


def rows_for(name: str, member: Member) -> Tensor:
    """(TOKENS, H) of the size that the member's own embeddings have."""
    own = cast("nn.Embedding", member.model.get_input_embeddings()).weight
    noise = torch.randn(TOKENS, own.shape[1], generator=torch.Generator().manual_seed(sum(name.encode())))
    return noise * own.std()


@pytest.fixture
def prompts(members: Mapping[str, Member]) -> dict[str, SoftPrompt]:
    found = {name: (members[base], rows_for(name, members[base])) for name, base in BACKBONES.items()}
    return {name: soft_prompt(name, member, rows) for name, (member, rows) in found.items()}


@pytest.fixture
def plain(plain_loop: PlainLoop, loaded: Mapping[str, Member]) -> PlainLoop:
    read = {name: Read(plain_loop.models[base], rows_for(name, loaded[base])) for name, base in BACKBONES.items()}
    alone = {"llama": Read(plain_loop.models["llama"], None)}
    return PlainLoop(cast("dict[str, PreTrainedModel]", read | alone))


@pytest.fixture
async def engine(members: Mapping[str, Member], prompts: Mapping[str, SoftPrompt]) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine({**members, **prompts}, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    yield engine
    await engine.close()


def plan_of(base: str, composition: dict[str, Any]) -> Plan:
    return build_plan(parse_composition(composition), base, known=[*MAKERS, *BACKBONES], token_id=lambda _: None)


async def test_a_mixed_batch_is_transformers_over_the_embeddings(engine: TorchEngine, plain: PlainLoop) -> None:
    plans = [single(name) for name in (*BACKBONES, "llama")] + [plan_of(*written) for written in COMPOSITIONS]
    requests = [request_for(plan, seed) for seed, plan in enumerate(plans)]
    answers = await asyncio.gather(*(run(engine, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        assert_same(outputs, plain.greedy(request.plan, request.contexts, request.forced, ANSWER))
    forwards = engine.stats().forward_seconds
    assert not forwards.keys() & BACKBONES.keys(), "the streams of a backbone were not rows of its own forward"


@pytest.mark.parametrize("name", ["llama", "gemma"])
async def test_embeddings_of_a_text_are_that_text(members: Mapping[str, Member], name: str) -> None:
    member, text = members[name], text_of(1, 9)
    prompt = soft_prompt("prompt", member, member.model.get_input_embeddings()(torch.tensor(text)))
    engine = TorchEngine({name: member, "prompt": prompt}, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    rest, scored = text_of(2, 12), text_of(3, 5)
    params = SamplingParams(max_tokens=8, temperature=0.9, seed=3, ignore_eos=True, top_logprobs=4)
    asked = [
        GenerationRequest("text", single(name), ((*text, *rest),), params, scored),
        GenerationRequest("soft", single("prompt"), (rest,), params, scored),
        GenerationRequest("drafted", single("prompt"), (rest,), params, scored, speculation=Speculation(NGRAM, 4)),
    ]
    told, soft, drafted = [await run(engine, request) for request in asked]
    assert [output.token for output in soft] == [output.token for output in told]
    assert [output.token for output in drafted] == [output.token for output in told]
    for one, other in zip(soft, told, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    await engine.close()


async def test_a_cached_prefix_is_the_soft_prompts_own(engine: TorchEngine, plain: PlainLoop) -> None:
    """One text behind one soft prompt, another and none, again and again: each finds its own prefix, none another's,
    and what is reported as cached was sent."""
    requests = [request_for(single(name), 1) for name in ("one", "two", "llama")]
    for again in (False, True):
        for request in requests:
            generation = engine.generate(request)
            outputs = [output async for output in generation]
            assert_same(outputs, plain.greedy(request.plan, request.contexts, request.forced, ANSWER))
            assert generation.cached_tokens == (len(request.contexts[0]) - 1 if again else 0)
    salted = [SimpleNamespace(salt=salt) for salt in ("", "other")]
    hits: list[int] = []
    for one in salted:
        before = engine.stats().prefix_hits
        request = requests[0]
        await run(engine, GenerationRequest("s", request.plan, request.contexts, request.sampling, cache_salt=one.salt))
        hits.append(engine.stats().prefix_hits - before)
    assert hits == [TOKENS + len(requests[0].contexts[0]) - 1, 0]


async def test_it_takes_room_of_slots_and_contexts(engine: TorchEngine, members: Mapping[str, Member]) -> None:
    info, own = engine.models["one"], members["llama"].info
    assert (info.max_model_len, info.virtual_tokens) == (own.max_model_len - TOKENS, TOKENS)
    assert info.backbone == "llama"
    params = SamplingParams(max_tokens=10)
    longest = tuple(text_of(1, info.max_model_len - 10))
    fits = GenerationRequest("fits", single("one"), (longest,), params)
    engine.check(fits)
    assert len(await run(engine, fits)) <= 10
    with pytest.raises(RequestTooLarge, match=str(info.max_model_len)):
        engine.check(GenerationRequest("long", single("one"), ((*longest, 5),), params))
    short = tuple(text_of(1, 50))  # with ten tokens it just fits into the shortest slot
    of_text, of_prompt = (engine.check(GenerationRequest("k", single(n), (short,), params)) for n in ("llama", "one"))
    assert of_prompt > of_text


async def test_penalties_and_guesses_know_nothing_of_it(prompts: Mapping[str, SoftPrompt]) -> None:
    request = request_for(single("one"), 4)
    (choice,) = choices_of(request, [prompts["one"]]).choices
    assert choice.seen == {*request.contexts[0], *request.forced}
    assert choice.streams[0].prompt == list(request.contexts[0])
    assert len(choice.streams[0].context) == TOKENS + len(request.contexts[0])


async def test_it_comes_and_goes_while_others_answer(
    members: Mapping[str, Member], engine: TorchEngine, plain: PlainLoop
) -> None:
    member = members["llama"]
    held = dict(member.virtual)
    engine.attach(soft_prompt("late", member, rows_for("two", member)))
    request = request_for(single("late"), 2)
    expected = plain.greedy(single("two"), request.contexts, request.forced, ANSWER)
    task = asyncio.create_task(run(engine, request))
    await asyncio.sleep(0)
    engine.detach("late", after=0.0)  # what reads it already goes on
    assert_same(await task, expected)
    await run(engine, request_for(single("llama"), 3))  # some steps
    assert "late" not in engine.models
    assert member.virtual.keys() == held.keys()


def test_what_cannot_be_served_is_refused(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    member = members["llama"]
    rows = rows_for("one", member)
    with pytest.raises(ValueError, match=r"are \[11, 47\], 'llama' takes rows of 48"):
        soft_prompt("p", member, rows[:, 1:])
    with pytest.raises(ValueError, match="not finite"):
        soft_prompt("p", member, rows / 0)
    with pytest.raises(ValueError, match="256"):
        soft_prompt("p", member, rows.repeat(30, 1))
    monkeypatch.setattr(member, "reads_embeddings", False)
    with pytest.raises(ValueError, match="LlamaForCausalLM reads more than embeddings"):
        soft_prompt("p", member, rows)


def test_a_model_that_reads_its_ids_besides_is_found_out(members: Mapping[str, Member]) -> None:
    member = members["llama-b"]
    assert all(other.reads_embeddings for other in members.values())
    per_token = torch.randn(member.vocab_size, 48, generator=torch.Generator().manual_seed(1))

    def add(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As Gemma 3n's embeddings of every layer are."""
        ids = given.pop("input_ids", None)
        if ids is not None:
            given["inputs_embeds"] = member.model.get_input_embeddings()(ids) + per_token[ids]
        return args, given

    handle = member.model.register_forward_pre_hook(add, with_kwargs=True)
    try:
        assert not reads_embeddings(member, list(range(3, 30)))
    finally:
        handle.remove()
    assert reads_embeddings(member, list(range(3, 30)))
    assert member.num_forwards == 0
