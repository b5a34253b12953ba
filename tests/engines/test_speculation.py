"""Guesses change how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from motet.composers.plan import Plan, single
from motet.engines.base import EngineError, GenerationRequest, GrammarFailed, SamplingParams
from motet.engines.drafts import NGRAM, Speculation
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineSettings, Member, TorchEngine, step
from motet.engines.torch.model import ModelWork
from motet.engines.torch.rows import ChoiceRow
from motet.kernels.proposals import warped
from motet.kernels.sampling import SampleRows
from tests.engines.conftest import PlainLoop
from tests.engines.test_exactness import PLANS, TOLERANCE, plan_of, request_for
from tests.tiny import EOS, VOCAB

DRAWS = 20  # one in a million of edges looks like none
NEAR = plan_of("llama", {"strategy": "proxy_tuning", "expert": "llama-b", "antiexpert": "llama-c", "alpha": 0.3})
GEDI = plan_of("llama-b", {"strategy": "discriminator", "wanted": "llama-b", "unwanted": "llama-c", "omega": 0.3})


@dataclass(frozen=True)
class Turns:
    """A grammar: tokens of each third of the vocabulary in turn, and an end only behind every fourth token."""

    text: str = "turns"
    thought: None = None
    closing: None = None

    def start(self, ends: Sequence[int]) -> Turns:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        turn = len(generated)
        may = [v != EOS and v % 3 == turn % 3 for v in range(VOCAB)]
        may[EOS] = turn > 0 and turn % 4 == 0
        if any(token % 3 != place % 3 for place, token in enumerate(generated)):
            raise GrammarFailed("a token stands where it may not")
        bits = np.zeros((VOCAB + 31) // 32 * 32, dtype=np.uint8)
        bits[:VOCAB] = may
        return np.packbits(bits, bitorder="little").tobytes()


COMPOSED = [plan for plan in PLANS if len(plan.streams) > 1]


def engine_with(members: Mapping[str, Member], **wish: Any) -> TorchEngine:
    """Small chunks, so that prompts are cut and mixed with blocks of guesses; always guessing."""
    wished = Speculation(**wish) if wish else Speculation(tokens=0)
    return TorchEngine(
        members, EngineSettings(prefill_chunk=8, idle_prefill_chunk=16, speculation=wished, adapts=False)
    )


async def answered(
    engine: TorchEngine, jobs: Sequence[GenerationRequest], pause: float = 0.0
) -> list[list[TokenOutput]]:
    """Outputs of every request, choice by choice; they join one after another and leave as they end."""

    async def run(index: int, job: GenerationRequest) -> list[TokenOutput]:
        await asyncio.sleep(pause * index)
        outputs = [output async for output in engine.generate(job)]
        return sorted(outputs, key=lambda output: output.choice)

    try:
        return await asyncio.gather(*(run(index, job) for index, job in enumerate(jobs)))
    finally:
        await engine.close()


def assert_alike(
    ours: Sequence[TokenOutput], theirs: Sequence[TokenOutput], is_edge: Callable[[int], bool] = lambda place: False
) -> None:
    """`is_edge(place)`: whether rounding decides what the log-prob there is."""
    assert [output.token for output in ours] == [output.token for output in theirs]
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert (one.choice, one.forced, one.finish) == (other.choice, other.forced, other.finish)
        if one.logprob != pytest.approx(other.logprob, abs=TOLERANCE) and is_edge(place):
            continue
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert (one.trace is None) == (other.trace is None)
        if one.trace is not None and other.trace is not None:
            assert one.trace.base_rank == other.trace.base_rank
            assert one.trace.kl == pytest.approx(other.trace.kl, abs=1e-3)
            assert one.trace.member_logprobs == pytest.approx(other.trace.member_logprobs, abs=1e-3)


def stands_on_edge(
    loop: PlainLoop, job: GenerationRequest, answers: tuple[Sequence[TokenOutput], Sequence[TokenOutput]], place: int
) -> bool:
    """Whether a token stands so near to the edge of a mask that rounding decides on which side: then the formula, of
    logits that differ by rounding, gives the log-probs of both answers. Among thousands of rows one is such a row; how
    it is rounded depends on who shares the batch. A false excuse needs two wrong values that are both among these."""
    tokens = [output.token for output in answers[0]]
    noise = torch.Generator().manual_seed(0)
    known = [
        float(loop.distribution(job.plan, job.contexts, tokens[:place], noise)[tokens[place]]) for _ in range(DRAWS)
    ]
    return all(min(abs(one[place].logprob - value) for value in known) <= TOLERANCE for one in answers)


def jobs_of(plans: Sequence[Plan], rng: random.Random) -> list[GenerationRequest]:
    """Greedy and seeded, of unlike lengths, some behind text that is scored first."""
    jobs: list[GenerationRequest] = []
    for plan in plans:
        jobs.append(request_for(plan, rng))
        jobs.append(request_for(plan, rng, temperature=0.7, seed=rng.randrange(1000), max_tokens=rng.randrange(1, 20)))
    rng.shuffle(jobs)
    return jobs


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
async def test_every_strategy_in_a_batch_that_joins_and_leaves(
    members: Mapping[str, Member], guessers: Mapping[str, Member], plain_loop: PlainLoop, tokens: int
) -> None:
    jobs = jobs_of(PLANS, random.Random(tokens))
    expected = await answered(engine_with(members), jobs)
    engine = engine_with(guessers, tokens=tokens)
    for job, ours, theirs in zip(jobs, await answered(engine, jobs, pause=0.003), expected, strict=True):
        assert_alike(ours, theirs, partial(stands_on_edge, plain_loop, job, (ours, theirs)))
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens, "some guesses were right, some wrong"
    assert sum(stats.accepted_at) == stats.accepted_tokens
    assert stats.draft_tokens <= tokens * stats.drafts


@pytest.mark.parametrize("plan", COMPOSED, ids=lambda plan: f"{plan.streams[0].model}-{plan.strategy}")
async def test_every_stream_can_draft(members: Mapping[str, Member], plan: Plan) -> None:
    rng = random.Random(str(plan))
    job = request_for(plan, rng, temperature=0.4, seed=3, max_tokens=14)
    (expected,) = await answered(engine_with(members), [job])
    for draft in (*(stream.role for stream in plan.streams), NGRAM):
        (ours,) = await answered(engine_with(members, tokens=3, draft=draft), [job])
        assert_alike(ours, expected)


WISHES: list[dict[str, Any]] = [
    {"trace_top": 2},
    {"top_logprobs": 4, "temperature": 1.0, "seed": 1, "n": 3},
    {"temperature": 1.0, "seed": 7, "top_k": 20, "top_p": 0.9},
    {"temperature": 0.8, "seed": 9, "min_p": 0.05},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "presence_penalty": 0.1, "bad_words": ((5,), (6, 7))},
    {"ignore_eos": False, "min_tokens": 6, "logit_bias": ((EOS, 4.0),)},
    {"stop_token_ids": tuple(range(3, 40)), "temperature": 0.5, "seed": 2},
    {"allowed_token_ids": tuple(range(10, 30)), "temperature": 0.6, "seed": 8},
    {"grammar": Turns(), "temperature": 0.5, "seed": 4},
    {"grammar": Turns(), "ignore_eos": False, "trace_top": 1},
]


@pytest.mark.parametrize("draft", ["base", "expert", NGRAM])
async def test_all_that_a_guess_could_disturb(
    members: Mapping[str, Member], guessers: Mapping[str, Member], draft: str
) -> None:
    rng = random.Random(0)
    repeated = tuple(rng.randrange(3, VOCAB) for _ in range(9)) * 6
    jobs: list[GenerationRequest] = []
    for wish in WISHES:
        options: dict[str, Any] = {"max_tokens": 40, **wish}
        n = options.pop("n", 1)
        job = request_for(NEAR, rng, **options)
        jobs.append(replace(job, n=n, contexts=(repeated,) * 3, forced=job.forced[:5]))
    expected = await answered(engine_with(members), jobs)
    engine = engine_with(guessers, tokens=5, draft=draft)
    for ours, theirs in zip(await answered(engine, jobs, pause=0.003), expected, strict=True):
        assert_alike(ours, theirs)
    assert engine.stats().accepted_tokens > (0 if draft == NGRAM else 20)


async def test_a_rule_that_gathers_over_the_answer(
    members: Mapping[str, Member], guessers: Mapping[str, Member]
) -> None:
    """The discriminator's sums go on from guesses that are right, and not from the others."""
    rng = random.Random(2)
    jobs = [request_for(GEDI, rng, max_tokens=30, trace_top=1, temperature=t, seed=5) for t in (0.0, 0.3, 1.0)]
    expected = await answered(engine_with(members), jobs)
    engine = engine_with(guessers, tokens=4, draft="base")
    for ours, theirs in zip(await answered(engine, jobs), expected, strict=True):
        assert_alike(ours, theirs)
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.draft_tokens


async def test_taking_every_guess_would_be_seen(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of these tests is sharp enough: without the test of guesses most answers are others."""
    jobs = jobs_of([NEAR, GEDI] * 3, random.Random(4))
    expected = await answered(engine_with(members), jobs)

    def every(rows: Sequence[ChoiceRow], _: Sequence[int]) -> dict[int, ChoiceRow]:
        return dict(enumerate(rows))

    monkeypatch.setattr(step, "verified", every)
    found = await answered(engine_with(members, tokens=3), jobs)
    tokens = [[[output.token for output in outputs] for outputs in answers] for answers in (expected, found)]
    assert sum(ours != theirs for ours, theirs in zip(*tokens, strict=True)) > len(jobs) / 2


async def test_a_member_that_fails_while_it_drafts_fails_its_requests_alone(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(members, tokens=3)
    (small,) = (members[stream.model] for stream in NEAR.streams if stream.role == "expert")
    forward = small.forward

    def failing(work: Sequence[ModelWork], *, is_guess: bool = False) -> Tensor:
        if work[0].start > 60:
            raise RuntimeError("no")
        return forward(work, is_guess=is_guess)

    monkeypatch.setattr(small, "forward", failing)
    doomed = request_for(NEAR, random.Random(1), max_tokens=90)
    healthy = request_for(single("qwen"), random.Random(1), max_tokens=90)
    answers = await asyncio.gather(*(read(engine, job) for job in (doomed, healthy)))
    assert isinstance(answers[0], EngineError)
    assert "'llama-b' failed while computing" in str(answers[0])
    assert isinstance(answers[1], list)
    assert len(answers[1]) >= 90
    assert engine.stats().kv_bytes_used == 0
    await engine.close()


async def read(engine: TorchEngine, job: GenerationRequest) -> list[TokenOutput] | EngineError:
    try:
        return [output async for output in engine.generate(job)]
    except EngineError as error:
        return error


async def test_prefixes_behind_wrong_guesses_are_sound(
    members: Mapping[str, Member], guessers: Mapping[str, Member]
) -> None:
    """The slots that guessing has cut back are found and read by the next requests."""
    rng = random.Random(6)
    first = request_for(NEAR, rng, max_tokens=30)
    engine = engine_with(guessers, tokens=6)
    said = await read(engine, first)
    assert isinstance(said, list)
    tokens = tuple(output.token for output in said)
    later = replace(first, contexts=tuple((*c, *tokens) for c in first.contexts), forced=())
    generation = engine.generate(later)
    ours = [output async for output in generation]
    assert generation.cached_tokens >= len(first.contexts[0]) + len(tokens) - 2
    (expected,) = await answered(engine_with(members), [later])
    assert_alike(ours, expected)
    await engine.close()


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize("sampling", [{}, {"top_k": 12, "temperature": 1.3}], ids=["whole", "filtered"])
async def test_guesses_judged_by_ratio_leave_the_distribution(
    guessers: Mapping[str, Member], plain_loop: PlainLoop, sampling: dict[str, Any]
) -> None:
    """Chi-square over the second of 2,400 answers' tokens, which is the first that is guessed; false-alarm rate 1e-6
    (seeds fixed). Many tokens end the answer: those are guessed differently."""
    context, stops = tuple(range(3, 40)), tuple(range(3, VOCAB, 3))
    options: dict[str, Any] = {"temperature": 1.0, "top_logprobs": 0, **sampling}
    params = SamplingParams(max_tokens=3, ignore_eos=True, stop_token_ids=stops, **options)
    job = GenerationRequest("r", NEAR, (context,) * 3, params, n=60)
    engine = engine_with(guessers, tokens=2, acceptance="ratio", draft="expert")
    answers = await answered(engine, [job] * 40)
    texts = [[o.token for o in outputs if o.choice == i] for outputs in answers for i in range(60)]
    drawn = Counter(text[1] for text in texts if len(text) > 1)

    def warped_after(shared: list[int]) -> Tensor:
        scores = plain_loop.distribution(NEAR, job.contexts, shared)
        rows = SampleRows([params.temperature], [params.top_k], [1.0], [0.0])
        return warped(scores[None], rows)[0]

    first = warped_after([])
    going_on = [v for v in range(VOCAB) if v not in stops and float(first[v]) > 1e-5]
    second = sum((first[v] * warped_after([v]) for v in going_on), torch.zeros(VOCAB, dtype=torch.float64))
    second /= second.sum()
    total = sum(drawn.values())
    common = [v for v in range(VOCAB) if float(second[v]) * total >= 5]
    observed = [*(drawn[v] for v in common), total - sum(drawn[v] for v in common)]
    expected = [*(float(second[v]) * total for v in common), total * (1 - sum(float(second[v]) for v in common))]
    chi_square: Any = scipy_stats.chisquare  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    assert chi_square(observed, expected)[1] > 1e-6
    stats = engine.stats()
    assert 0.05 * stats.draft_tokens < stats.accepted_tokens < stats.draft_tokens


async def test_seeds_hold_whatever_the_acceptance(
    members: Mapping[str, Member], guessers: Mapping[str, Member]
) -> None:
    jobs = jobs_of([NEAR, GEDI] * 3, random.Random(4))
    expected = await answered(engine_with(members), jobs)
    engine = engine_with(guessers, tokens=3, acceptance="ratio")
    for ours, theirs in zip(await answered(engine, jobs), expected, strict=True):
        assert_alike(ours, theirs)


async def test_rows_that_do_not_guess_stand_beside_those_that_do(members: Mapping[str, Member]) -> None:
    jobs = jobs_of([NEAR, single("llama-b"), GEDI] * 3, random.Random(4))
    expected = await answered(engine_with(members), jobs)
    mixed = [replace(job, speculation=Speculation(tokens=i % 3)) for i, job in enumerate(jobs)]
    for ours, theirs in zip(await answered(engine_with(members), mixed, pause=0.003), expected, strict=True):
        assert_alike(ours, theirs)


async def test_what_a_cascade_is_sure_of_is_guessed_right(members: Mapping[str, Member]) -> None:
    plan = plan_of("llama", {"strategy": "cascade", "small": "llama-b", "threshold": 0})
    engine = engine_with(members, tokens=4, draft="small")
    await answered(engine, [request_for(plan, random.Random(1), temperature=1.0, seed=3, max_tokens=30)])
    assert engine.stats().accepted_tokens == engine.stats().draft_tokens >= 16
