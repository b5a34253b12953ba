"""Adapters weighted by their clusters, against the paper's formula in NumPy over transformers' own states."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from motet.composers.plan import Plan, single
from motet.composers.rows import reference_logprobs
from motet.composers.spec import build_plan, parse_composition
from motet.composers.timeline import adapted
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import OFF, Speculation
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineCore, EngineSettings, Member, TorchEngine, attach_adapter, load_member
from motet.models.heads import ReadingHead, Seen, SimilarityHead
from tests.engines.conftest import HEADS, PlainLoop, placed
from tests.engines.test_adapters import weights_of, with_peft
from tests.engines.test_exactness import PLANS, plan_of
from tests.engines.test_rules import run, text_of
from tests.tiny import MAKERS, VOCAB

TOLERANCE = 1e-4
BASE = "llama-c"  # the one whose head knows clusters, three of them
OTHERS = ["llama", "qwen", "gpt2"]
CASES: list[dict[str, Any]] = [
    {"adapters": OTHERS},
    {"adapters": ["gemma", "mistral", "llama-b"], "share": 0.25},
    {"adapters": ["llama-b", "llama-b", BASE], "share": 0.0},
]


def plan_for(fields: dict[str, Any]) -> Plan:
    return plan_of(BASE, {"strategy": "adapters", **fields})


def request_for(plan: Plan, number: int, forced: int = 11, **sampling: Any) -> GenerationRequest:
    """Streams read texts of their own, longer than a chunk; some tokens of the answer are scored, then some drawn."""
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, "trace_top": 1}
    contexts = tuple(text_of(10 * number + k, 9 + 5 * k) for k in range(len(plan.streams)))
    return GenerationRequest(f"r{number}", plan, contexts, SamplingParams(**given | sampling), text_of(number, forced))


@torch.no_grad()
def told(plain: PlainLoop, model: str, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden state (H,) and log-probs (V,) behind the ids, float64."""
    found = plain.models[model](torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    logits = found.logits[0, -1].double().numpy()
    return found.hidden_states[-1][0, -1].double().numpy(), logits - np.logaddexp.reduce(logits)


def shares_of(plain: PlainLoop, prompt: list[int]) -> np.ndarray:
    """softmax_c((cos(h, μ_c) − m_c) / σ_c) of a prompt's feature."""
    feature, _ = told(plain, BASE, prompt)
    head = HEADS[BASE][1](len(feature)).state_dict()
    centroids, mean, deviation = (head[name].double().numpy() for name in ("centroids", "mean", "deviation"))
    cosines = [centroid @ feature / np.linalg.norm(centroid) / np.linalg.norm(feature) for centroid in centroids]
    scores = np.exp((np.array(cosines) - mean) / deviation)
    return scores / scores.sum()


def formula(
    plain: PlainLoop, request: GenerationRequest, share: float, past: list[int], shares: np.ndarray
) -> np.ndarray:
    """Log-probs (V,): the base's and the adapters', summed with their weights."""
    members = zip(request.plan.streams, request.contexts, strict=True)
    base, *others = [told(plain, stream.model, [*context, *past])[1] for stream, context in members]
    z = share * base + (1 - share) * sum(w * other for w, other in zip(shares, others, strict=True))
    return z - np.logaddexp.reduce(z)


def check(plain: PlainLoop, request: GenerationRequest, share: float, outputs: list[TokenOutput]) -> None:
    """Behind the prompt, which ends where the answer begins: the shares of its last token, for every token."""
    past: list[int] = []
    asked = request.num_prompt_forced
    for output in outputs:
        shares = shares_of(plain, [*request.contexts[0], *past[:asked]])
        wanted = formula(plain, request, share, past, shares)
        assert output.trace is not None
        assert output.trace.alpha == pytest.approx([*shares], abs=TOLERANCE)
        assert output.trace.head is None
        assert output.logprob == pytest.approx(wanted[output.token], abs=TOLERANCE)
        assert output.forced or output.token == int(wanted.argmax())
        past.append(output.token)


@pytest.mark.parametrize("case", range(len(CASES)))
async def test_it_is_the_papers_formula(engine: TorchEngine, plain_loop: PlainLoop, case: int) -> None:
    request = request_for(plan_for(CASES[case]), case)
    outputs = await run(engine, request)
    check(plain_loop, request, CASES[case].get("share", 0.5), outputs)
    assert outputs[0].trace is not None
    assert 0.4 < max(outputs[0].trace.alpha) < 0.99


async def test_beside_all_others_it_is_the_papers_formula(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    own = [request_for(plan_for(fields), n) for n, fields in enumerate(CASES)]
    others = [request_for(plan, 50 + n, max_tokens=3) for n, plan in enumerate(PLANS)]
    answers = await asyncio.gather(*(run(engine, request) for request in (*own, *others)))
    for request, fields, outputs in zip(own, CASES, answers, strict=False):
        check(plain_loop, request, fields.get("share", 0.5), outputs)


async def test_prompts_have_unlike_shares(engine: TorchEngine) -> None:
    answers = [await run(engine, request_for(plan_for(CASES[0]), seed, 0, max_tokens=1)) for seed in range(9)]
    nearest = {int(np.argmax(outputs[0].trace.alpha)) for outputs in answers if outputs[0].trace}
    assert len(nearest) > 1


@pytest.mark.parametrize("asked", [0, 1, 7, 15])
async def test_a_scored_prompt_has_the_shares_of_what_was_read_so_far(
    engine: TorchEngine, plain_loop: PlainLoop, asked: int
) -> None:
    """And its answer those of a prompt that was only read, also where a beginning of the answer is given."""
    request = replace(request_for(plan_for(CASES[1]), 3, 18), num_prompt_forced=asked)
    past: list[int] = []
    for number, output in enumerate(await run(engine, request)):
        shares = shares_of(plain_loop, [*request.contexts[0], *past[: min(number, asked)]])
        assert output.trace is not None
        assert output.trace.alpha == pytest.approx([*shares], abs=TOLERANCE)
        wanted = formula(plain_loop, request, 0.25, past, shares)
        assert output.logprob == pytest.approx(wanted[output.token], abs=TOLERANCE)
        past.append(output.token)


async def test_cached_prefixes_and_choices_have_the_same_shares(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    request = replace(request_for(plan_for(CASES[0]), 4, 0), n=3)
    await run(engine, request_for(single(BASE), 4, 0))  # leaves the prefix, without shares
    for _ in range(2):
        outputs = await run(engine, request)
        for index in range(3):
            check(plain_loop, request, 0.5, [output for output in outputs if output.choice == index])
    assert engine.stats().prefix_hits > 0


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_shares_outlive_preemption(members: Mapping[str, Member], plain_loop: PlainLoop, every: int) -> None:
    """While the prompt is read, scored and answered."""
    requests = [
        replace(request_for(plan_for(fields), n), num_prompt_forced=5 * n) for n, fields in enumerate(CASES[:2])
    ]
    core = EngineCore(members, EngineSettings(prefill_chunk=8, idle_prefill_chunk=8))
    groups = [core.group(request) for request in requests]
    for group in groups:
        core.add(group)
    told: list[list[TokenOutput]] = [[], []]
    count = 0
    while (step := core.step()) is not None:
        for choice, output in step.outputs:
            told[groups.index(choice.group)].append(output)
        count += 1
        if count % every == 0 and core.scheduler.running and count < 60:
            with torch.inference_mode():
                core.scheduler._preempt(core.scheduler.running[-1])  # pyright: ignore[reportPrivateUsage]
    assert core.stats().preemptions > 1
    check(plain_loop, requests[0], 0.5, told[0])
    alone = EngineCore(members, EngineSettings())
    alone.add(alone.group(requests[1]))
    kept: list[TokenOutput] = []
    while (step := alone.step()) is not None:
        kept += [output for _, output in step.outputs]
    for mine, other in zip(told[1], kept, strict=True):
        assert (mine.token, mine.logprob) == (other.token, pytest.approx(other.logprob, abs=TOLERANCE))
        assert mine.trace is not None
        assert other.trace is not None
        assert mine.trace.alpha == pytest.approx(other.trace.alpha, abs=TOLERANCE)


@pytest.mark.parametrize("draft", ["base", "adapter_1", "ngram"])
async def test_guesses_leave_answers_as_they_are(members: Mapping[str, Member], draft: str) -> None:
    """The shares are those of the prompt, not of what was guessed."""
    plan = plan_for({"adapters": OTHERS, "share": 0.8})
    requests = [request_for(plan, n, 3, max_tokens=20, temperature=0.9 * (n > 1), seed=5) for n in (1, 2)]
    answers: list[list[TokenOutput]] = []
    for speculation in (Speculation(draft, 4), OFF):
        engine = TorchEngine(members, EngineSettings(speculation=speculation, adapts=False))
        answers += [await run(engine, request) for request in requests]
        assert speculation is OFF or draft == "ngram" or engine.stats().draft_tokens > 0
        await engine.close()
    for found, wanted in zip(answers[:2], answers[2:], strict=True):
        assert [output.token for output in found] == [output.token for output in wanted]
        alphas = [{output.trace.alpha for output in outputs if output.trace} for outputs in (found, wanted)]
        assert all(len(own) == 1 for own in alphas)
        assert alphas[0].pop() == pytest.approx(alphas[1].pop(), abs=TOLERANCE)


async def test_masks_and_penalties_act_on_what_is_composed(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    allowed = tuple(range(5, 60))
    request = request_for(
        plan_for(CASES[0]), 6, 0, allowed_token_ids=allowed, presence_penalty=1.5, logit_bias=((7, 2.0),)
    )
    shares = shares_of(plain_loop, list(request.contexts[0]))
    past: list[int] = []
    for output in await run(engine, request):
        z = formula(plain_loop, request, 0.5, past, shares)
        kept = np.full(VOCAB, -np.inf)
        kept[list(allowed)] = z[list(allowed)]
        kept -= np.logaddexp.reduce(kept)
        assert output.logprob == pytest.approx(kept[output.token], abs=TOLERANCE)
        kept[7] += 2.0
        kept[list(set(past))] -= 1.5
        assert output.token == int(kept.argmax())
        past.append(output.token)


def headed(paths: Mapping[str, Path], head: ReadingHead) -> Member:
    return load_member("headed", str(paths[BASE]), dtype=torch.float32, head=("similarity", lambda _: head))


async def logprobs_of(members: Mapping[str, Member], plan: Plan) -> list[tuple[int, float]]:
    engine = TorchEngine(members, EngineSettings())
    sampling = SamplingParams(max_tokens=8, temperature=0.8, seed=3, ignore_eos=True)
    outputs = await run(engine, GenerationRequest("r", plan, (text_of(3, 9),) * len(plan.streams), sampling))
    await engine.close()
    return [(output.token, output.logprob) for output in outputs]


def assert_alike(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> None:
    assert [token for token, _ in one] == [token for token, _ in other]
    assert [value for _, value in one] == pytest.approx([value for _, value in other], abs=TOLERANCE)


def built(base: str, composition: dict[str, Any]) -> Plan:
    return build_plan(parse_composition(composition), base, known=[*MAKERS, "headed"], token_id=lambda _: None)


async def test_identities(members: Mapping[str, Member], paths: Mapping[str, Path]) -> None:
    """A share of 1 is the base, as are adapters that change nothing; clusters that are alike make a mean; one adapter
    alone is that adapter; a schedule of nothing is the base."""
    base = await logprobs_of(members, single(BASE))
    for fields in (
        {"adapters": OTHERS, "share": 1.0},
        {"adapters": [BASE] * 3, "share": 0.3},
        {"adapters": OTHERS, "share": 0.3, "schedule": {"points": [{"token": 0, "scale": 0}]}},
    ):
        assert_alike(await logprobs_of(members, plan_for(fields)), base)
    alike = SimilarityHead(48, ["one", "two", "three"])
    torch.nn.init.ones_(alike.centroids)
    within = {**members, "headed": headed(paths, alike.requires_grad_(False))}
    weights = [{"model": name, "weight": 0.2} for name in OTHERS]
    mean = built("headed", {"strategy": "product", "members": [{"model": "headed", "weight": 0.4}, *weights]})
    even = built("headed", {"strategy": "adapters", "adapters": OTHERS, "share": 0.4})
    assert_alike(await logprobs_of(within, even), await logprobs_of(within, mean))
    within["headed"] = headed(paths, placed(SimilarityHead(48, ["one"])))
    one = built("headed", {"strategy": "adapters", "adapters": "qwen", "share": 0.0})
    assert_alike(await logprobs_of(within, one), await logprobs_of(within, single("qwen")))


def test_constants_of_members_cancel() -> None:
    plan = plan_for(CASES[1])
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 11, generator=generator, dtype=torch.float64)
    told = adapted(plan, (0.5, 0.3, 0.2))
    raised = logits + torch.tensor([3.0, -50.0, 7.0, 100.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(reference_logprobs(told, raised), reference_logprobs(told, logits))


async def test_adapters_of_the_base_are_rows_of_its_forward(
    members: Mapping[str, Member], plain_loop: PlainLoop
) -> None:
    """Low-rank adapters, as peft computes them; the head reads the base's rows, not theirs."""
    names = ("one", "two", "windowed")
    pefts = {name: with_peft(name, plain_loop.models[BASE]) for name in names}
    adapters = {name: attach_adapter(name, members[BASE], weights_of(pefts[name])) for name in names}
    assert all(adapter.info.head is None and not adapter.info.clusters for adapter in adapters.values())
    plain = PlainLoop({**plain_loop.models, **{name: peft.base_model.model for name, peft in pefts.items()}})
    known = [*MAKERS, *names]
    composition = parse_composition({"strategy": "adapters", "adapters": list(names)})
    plan = build_plan(composition, BASE, known=known, token_id=lambda _: None)
    engine = TorchEngine({**members, **adapters}, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16))
    requests = [request_for(plan, seed) for seed in (1, 2)]
    answers = await asyncio.gather(*(run(engine, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        check(plain, request, 0.5, outputs)
    assert not engine.stats().forward_seconds.keys() & set(names)
    await engine.close()


async def test_adapters_that_are_not_one_for_each_cluster_are_refused(engine: TorchEngine) -> None:
    said = engine.supports(plan_for({"adapters": ["llama", "qwen"]}))
    assert said == (
        "2 adapters for the 3 clusters that 'llama-c' knows; give one for each, in this order: one, two, three"
    )
    said = engine.supports(plan_of("llama", {"strategy": "adapters", "adapters": OTHERS}))
    assert said is not None
    assert "needs a similarity that was trained on its base" in said
    assert engine.supports(plan_for({"adapters": OTHERS})) is None


def test_cosines_of_one_prompt_alone_do_not_divide_by_nothing() -> None:
    head = SimilarityHead(4, ["one", "two"])
    head.fit(torch.eye(4)[:3], torch.tensor([0, 1, 1]))
    told = head.reading(Seen(torch.eye(4)[:1], torch.zeros(1, 3), torch.nn.Embedding(3, 4)))
    assert bool(told.isfinite().all())
    assert told[0, 0] > 0.99
