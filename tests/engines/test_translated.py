"""Members of other tokens than their base: renumbered ones answer bit for bit as the same members under the base's ids,
others as the formula of `composers.token_map` says, in float64."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.composers.plan import Plan, single
from motet.composers.rows import reference_logprobs
from motet.composers.rules import DiscriminatorRule
from motet.composers.timeline import Timeline, adapted
from motet.composers.token_map import NONE, TokenMap
from motet.engines.base import GenerationRequest, RequestTooLarge, SamplingParams, ends_of
from motet.engines.drafts import NGRAM, Speculation, draft_names, drafts_of
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, Member, TorchEngine, load_member, soft_prompt
from tests.engines.conftest import HEADS, PlainLoop
from tests.engines.test_exactness import PLANS, TOLERANCE, assert_same, plan_of, request_for
from tests.engines.test_rules import run, text_of
from tests.tiny import EOS, MAKERS, VOCAB

MOVED = random.Random(11).sample(range(VOCAB), VOCAB)
RENUMBERED = TokenMap(tuple(MOVED), spell=lambda _: [0])
# every fifth token has no counterpart, and is read as one to three others
PARTIAL = TokenMap(
    tuple(NONE if token % 5 == 4 else MOVED[token] for token in range(VOCAB)),
    spell=lambda token: [(token * 7 + i) % VOCAB for i in range(1 + token % 3)],
)
PROXY = plan_of("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c"})


def other(name: str) -> str:
    return f"{name}-renumbered"


def mapped(plan: Plan, tokens: TokenMap) -> Plan:
    """The plan with other tokens for all members but those that are the base's model."""
    base = plan.streams[0].model
    streams = [s if s.model == base else replace(s, model=other(s.model), tokens=tokens) for s in plan.streams]
    return replace(plan, streams=tuple(streams))


MAPPED = [plan for plan in PLANS if mapped(plan, RENUMBERED) != plan]


def under_other_ids(request: GenerationRequest, tokens: TokenMap = RENUMBERED) -> GenerationRequest:
    """The same request of the renumbered members."""
    plan = mapped(request.plan, tokens)
    pairs = zip(plan.streams, request.contexts, strict=True)
    contexts = tuple(context if s.tokens is None else tuple(s.tokens.read(context)) for s, context in pairs)
    return replace(request, plan=plan, contexts=contexts)


def renumber(model: PreTrainedModel, moved: Sequence[int] = MOVED) -> PreTrainedModel:
    """The model with the token that was i as token `moved[i]`. Its logits are moved behind the head, since a head whose
    rows are moved sums in another order."""
    embeddings, head = cast("Any", model.get_input_embeddings()), cast("Any", model.get_output_embeddings())
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    rows = torch.empty_like(embeddings.weight)
    rows[list(moved)] = embeddings.weight.detach()
    embeddings.weight = nn.Parameter(rows, requires_grad=False)
    before = torch.tensor(moved).argsort()

    def move(_: nn.Module, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits[..., before]

    head.register_forward_hook(move)
    model.config.eos_token_id = moved[EOS]
    model.generation_config.eos_token_id = moved[EOS]
    return model


def as_it_is(model: PreTrainedModel) -> PreTrainedModel:
    """Its weights lie in memory as those of a renumbered model do: products round by that, too."""
    return renumber(model, range(VOCAB))


@pytest.fixture(scope="session")
def both(paths: Mapping[str, Path]) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for name, path in paths.items():
        found[name] = load_member(name, str(path), dtype=torch.float32, adapt=as_it_is, head=HEADS.get(name))
        found[other(name)] = load_member(other(name), str(path), dtype=torch.float32, adapt=renumber)
    return found


@pytest.fixture
async def engine(both: dict[str, Member]) -> AsyncIterator[TorchEngine]:
    for member in both.values():
        member.cache.clear()
    engine = TorchEngine(both, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    yield engine
    await engine.close()


async def batch(engine: TorchEngine, requests: Sequence[GenerationRequest]) -> list[list[TokenOutput]]:
    return await asyncio.gather(*(run(engine, request) for request in requests))


def test_most_strategies_have_members_that_are_not_the_base() -> None:
    assert len({plan.strategy for plan in MAPPED}) >= 15


def close(got: Sequence[TokenOutput], expected: Sequence[TokenOutput]) -> None:
    """The same up to the order in which batches of unlike make-up are summed."""
    assert [(o.token, o.finish, [t for t, _ in o.top]) for o in got] == [
        (o.token, o.finish, [t for t, _ in o.top]) for o in expected
    ]
    for one, other in zip(got, expected, strict=True):
        for value, wanted in zip(one.top, other.top, strict=True):
            assert value[1] == pytest.approx(wanted[1], abs=TOLERANCE)


@pytest.mark.parametrize("plan", MAPPED, ids=lambda plan: f"{plan.streams[0].model}-{plan.strategy}")
async def test_renumbered_members_answer_bit_for_bit(engine: TorchEngine, plan: Plan) -> None:
    """Tokens, log-probs, alternatives and traces, of prompts that are read in one step."""
    request = request_for(plan, random.Random(str(plan.strategy)), max_tokens=6, trace_top=2, trace_members=True)
    contexts = tuple(context[:3] for context in request.contexts)
    request = replace(request, contexts=contexts, forced=request.forced[:1])
    expected = await run(engine, request)
    for member in engine_members(engine):
        member.cache.clear()
    assert await run(engine, under_other_ids(request)) == expected


def engine_members(engine: TorchEngine) -> list[Member]:
    return [member for name in engine.models if isinstance(member := engine.backbone(name), Member)]


async def test_a_mixed_batch_of_renumbered_members(engine: TorchEngine) -> None:
    rng = random.Random(1)
    requests = [request_for(plan, rng, f"r{i}", trace_top=2) for i, plan in enumerate(MAPPED)]
    plain = await batch(engine, requests)
    moved = await batch(engine, [under_other_ids(request) for request in requests])
    for got, expected in zip(moved, plain, strict=True):
        close(got, expected)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.9, "seed": 3, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
        {"logit_bias": ((7, 4.0), (9, -3.0)), "bad_words": ((8,), (3, 4)), "min_tokens": 4},
        {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"allowed_token_ids": tuple(range(3, VOCAB, 2)), "stop_token_ids": (33, 35, 37), "ignore_eos": False},
        {"logprob_token_ids": (4, 5, 6), "top_logprobs": 3, "ignore_eos": False},
        {"confidence": "margin"},
    ],
    ids=lambda sampling: "-".join(sampling),
)
async def test_what_a_request_sets_is_in_the_bases_ids(engine: TorchEngine, sampling: dict[str, Any]) -> None:
    rng = random.Random(2)
    plans = [plan for plan in MAPPED if len(plan.streams) > 1][::3]
    requests = [request_for(plan, rng, f"s{i}", max_tokens=12, **sampling) for i, plan in enumerate(plans)]
    plain = await batch(engine, requests)
    moved = await batch(engine, [under_other_ids(request) for request in requests])
    for got, expected in zip(moved, plain, strict=True):
        close(got, expected)


async def test_renumbered_members_verify_guesses(both: Mapping[str, Member]) -> None:
    """The base or the text guesses; the members' rows behind guesses are translated as all others."""
    plan = mapped(PROXY, RENUMBERED)
    assert drafts_of(plan, None) == [0, NGRAM]
    assert drafts_of(plan, "expert") == []
    assert draft_names(plan) == ["base", "llama", NGRAM]
    engine = TorchEngine(both, EngineSettings(adapts=False))
    request = replace(request_for(PROXY, random.Random(3), max_tokens=30, temperature=0.7, seed=5), forced=(4, 5) * 5)
    expected = [output.token for output in await run(engine, request)]
    for draft in ("base", NGRAM):
        before = engine.stats().draft_tokens
        drafted = replace(under_other_ids(request), speculation=Speculation(draft, 4))
        assert [output.token for output in await run(engine, drafted)] == expected
        assert engine.stats().draft_tokens > before
    await engine.close()


async def test_a_soft_prompts_rows_are_not_translated(both: Mapping[str, Member]) -> None:
    rows = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)) * 0.3
    prompts = {name: soft_prompt(f"p-{name}", both[name], rows) for name in ("llama-b", other("llama-b"))}
    engine = TorchEngine({**both, **{prompt.name: prompt for prompt in prompts.values()}})
    request = request_for(PROXY, random.Random(4), max_tokens=8)
    with_prompt = replace(PROXY.streams[1], model="p-llama-b")
    plain = replace(request, plan=replace(PROXY, streams=(PROXY.streams[0], with_prompt, PROXY.streams[2])))
    moved = under_other_ids(request)
    streams = list(moved.plan.streams)
    streams[1] = replace(streams[1], model=f"p-{other('llama-b')}")
    expected = await run(engine, plain)
    close(await run(engine, replace(moved, plan=replace(moved.plan, streams=tuple(streams)))), expected)
    await engine.close()


def test_ends_are_the_bases_for_them(both: Mapping[str, Member]) -> None:
    infos = {name: member.info for name, member in both.items()}
    assert infos[other("llama-b")].eos_token_ids == (MOVED[EOS],)
    assert ends_of(mapped(PROXY, RENUMBERED), infos) == (EOS,)
    without = TokenMap(tuple(NONE if t == EOS else MOVED[t] for t in range(VOCAB)), lambda _: [0])
    assert ends_of(mapped(PROXY, without), infos) == (EOS,), "the base's own"
    by_role = replace(without, end=7, own_ends=(MOVED[EOS],), is_by_role=True)
    assert ends_of(mapped(PROXY, by_role), infos) == (EOS, 7)


@dataclass(frozen=True)
class Completed(PlainLoop):
    """Members of other tokens by the formula, in probabilities and float64."""

    @torch.no_grad()
    def distribution(
        self, plan: Plan, contexts: tuple[tuple[int, ...], ...], shared: list[int], noise: torch.Generator | None = None
    ) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        for stream, context in zip(plan.readers, contexts, strict=True):
            read = shared if stream.tokens is None else stream.tokens.read(shared)
            logits = self.models[stream.model](torch.tensor([[*context, *read]]), use_cache=False).logits
            p = logits[0, -1].double().softmax(-1)
            rows.append(p.log() if stream.tokens is None else completed(stream.tokens, p, rows[0].exp()).log())
        reading = None if not plan.heads else self.reading(plan, contexts, shared)
        state = None if reading is None else self.state(plan, contexts, shared)
        plan = Timeline(plan).at(lambda: shared)
        plan = plan if reading is None else adapted(plan, reading)
        stacked = torch.stack(rows)[:, None]
        return reference_logprobs(plan, stacked, generated=[shared], eos_token_ids=(EOS,), state=state)[0]


def completed(tokens: TokenMap, q: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """q' (W,), token by token."""
    own = [0.0 if token == NONE else float(q[token]) for token in tokens.ids]
    if tokens.end != NONE:
        own[tokens.end] = sum(float(q[token]) for token in {tokens.ids[tokens.end], *tokens.own_ends})
    shared = sum(own)
    mass = sum(float(base[v]) for v, token in enumerate(tokens.ids) if token != NONE)
    parts = [float(base[v]) if token == NONE else mass * own[v] / shared for v, token in enumerate(tokens.ids)]
    return torch.tensor(parts, dtype=torch.float64)


@pytest.fixture(scope="session")
def plain(plain_loop: PlainLoop, paths: Mapping[str, Path]) -> Completed:
    moved: dict[str, PreTrainedModel] = {}
    for name, path in paths.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        moved[other(name)] = renumber(model)
    return Completed({**plain_loop.models, **moved})


APPROXIMATE = [p for p in MAPPED if not p.exits and not isinstance(p.rule, DiscriminatorRule)]


@pytest.mark.parametrize("tokens", [PARTIAL, replace(PARTIAL, end=EOS, own_ends=(9, 40), is_by_role=True)])
async def test_tokens_without_a_counterpart(engine: TorchEngine, plain: Completed, tokens: TokenMap) -> None:
    """Every strategy in one batch with exact members and plain models, forced tokens among them."""
    assert not tokens.is_exact
    assert not tokens.has_all
    rng = random.Random(6)
    requests = [under_other_ids(request_for(p, rng, f"a{i}"), tokens) for i, p in enumerate(APPROXIMATE)]
    beside = [under_other_ids(request_for(p, rng, f"b{i}")) for i, p in enumerate(MAPPED[:6])]
    beside += [request_for(single(name), rng) for name in MAKERS]
    answers = await batch(engine, [*requests, *beside])
    respelled = 0
    for request, outputs in zip(requests, answers, strict=False):
        expected = plain.greedy(request.plan, request.contexts, request.forced, request.sampling.max_tokens)
        assert_same(outputs, expected)
        respelled += sum(tokens.ids[output.token] == NONE for output in outputs)
    assert respelled > 20


async def test_what_a_member_does_not_have_is_left_as_it_is(engine: TorchEngine) -> None:
    """A pair cancels there, a mixture keeps the base's share: no strength moves it."""
    lacking = tuple(token for token, own in enumerate(PARTIAL.ids) if own == NONE)
    contexts = (text_of(7, 9),) * 3
    params = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=lacking, top_logprobs=len(lacking))
    alone = await run(engine, GenerationRequest("b", single("llama"), contexts[:1], params))
    apart = dict(alone[0].top)
    for strength in (0.5, 3.0):
        written = {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "alpha": strength}
        plan = mapped(plan_of("llama", written), PARTIAL)
        told = dict((await run(engine, GenerationRequest("p", plan, contexts, params)))[0].top)
        shifts = [told[token] - apart[token] for token in lacking]  # the constant is the normalisation
        assert max(shifts) - min(shifts) < 1e-4
    written = {"strategy": "mixture", "members": ["llama", {"model": "qwen", "weight": 0.5}]}
    plan = mapped(plan_of("llama", written), PARTIAL)
    told = dict((await run(engine, GenerationRequest("m", plan, contexts[:2], params)))[0].top)
    for token in lacking:
        assert told[token] == pytest.approx(apart[token], abs=1e-4)


async def test_respelled_answers_go_on_after_their_memory_was_taken(
    both: Mapping[str, Member], plain: Completed
) -> None:
    """Slots that grow, choices that begin anew, prefixes that are found again."""
    plan = mapped(PROXY, PARTIAL)
    names = {stream.model for stream in plan.streams}
    members = {name: both[name] for name in names}
    for member in members.values():
        member.cache.clear()
    per_token = sum(member.info.kv_bytes_per_token for member in members.values())
    engine = TorchEngine(members, EngineSettings(kv_cache_bytes=per_token * 256 * 3, prefill_chunk=8))
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    requests = [GenerationRequest(f"m{i}", plan, (text_of(i, 40),) * 3, params) for i in range(4)]
    for request, outputs in zip(requests, await batch(engine, requests), strict=True):
        assert_same(outputs, plain.greedy(plan, request.contexts, (), 60))
    await engine.close()


async def test_an_answer_ends_where_a_members_context_does(engine: TorchEngine) -> None:
    long = TokenMap((NONE,) * 3 + PARTIAL.ids[3:], spell=lambda token: [5] * 9)
    plan = mapped(PROXY, long)
    context = text_of(8, 60)
    allowed = tuple(token for token, own in enumerate(long.ids) if own == NONE)
    params = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True, allowed_token_ids=allowed)
    request = GenerationRequest("long", plan, (context,) * 3, params)
    engine.check(request)
    outputs = await run(engine, request)
    assert len(outputs) == (256 - 60) // 9 + 1
    assert outputs[-1].finish == "length"
    with pytest.raises(RequestTooLarge, match="207 to score"):
        engine.check(replace(request, forced=allowed[:23]))


async def test_nothing_guesses_where_a_member_reads_several_tokens(engine: TorchEngine, plain: Completed) -> None:
    assert drafts_of(mapped(PROXY, PARTIAL), None) == []
    request = under_other_ids(request_for(PROXY, random.Random(9), max_tokens=12), PARTIAL)
    before = engine.stats().draft_tokens
    outputs = await run(engine, replace(request, speculation=Speculation(None, 4)))
    assert engine.stats().draft_tokens == before
    assert_same(outputs, plain.greedy(request.plan, request.contexts, request.forced, 12))


async def test_mixtures_are_not_drawn_by_member(engine: TorchEngine) -> None:
    written = {"strategy": "mixture", "members": ["llama", {"model": "qwen", "weight": 0.5}]}
    plan = mapped(plan_of("llama", written), PARTIAL)
    params = SamplingParams(max_tokens=4)
    request = GenerationRequest("d", plan, (text_of(1, 5),) * 2, params, by_member=True)
    assert not engine.draws_members(request)
    assert len(await run(engine, request)) <= 4
