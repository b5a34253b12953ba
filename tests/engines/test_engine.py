"""Memory, prefixes, sampling parameters, failures and cancellation of the embedded engine."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from scipy import stats

from motet.composers.plan import Plan, Stream, TokenSet, single
from motet.engines.base import (
    EngineError,
    EngineStopped,
    GenerationRequest,
    NoTokenPossible,
    RequestTooLarge,
    SamplingParams,
)
from motet.engines.outputs import StepTimes, TokenOutput
from motet.engines.torch import EngineCore, EngineSettings, Member, ModelLoadError, TorchEngine, load_member
from motet.engines.torch.engine import MAX_RESTARTS
from tests.engines.conftest import PlainLoop
from tests.tiny import EOS, VOCAB

PROXY = Plan((Stream("base", "llama"), Stream("expert", "llama-b", 1.0), Stream("antiexpert", "llama-c", -1.0)))
CONTEXT = tuple(range(3, 40))


def request(plan: Plan = PROXY, context: tuple[int, ...] = CONTEXT, n: int = 1, **sampling: Any) -> GenerationRequest:
    defaults: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    params = SamplingParams(**{**defaults, **sampling})
    return GenerationRequest("r", plan, (context,) * len(plan.streams), params, n=n)


async def collect(engine: TorchEngine, job: GenerationRequest) -> dict[int, list[TokenOutput]]:
    outputs: dict[int, list[TokenOutput]] = {}
    async for output in engine.generate(job):
        outputs.setdefault(output.choice, []).append(output)
    return outputs


async def tokens(engine: TorchEngine, job: GenerationRequest) -> dict[int, list[int]]:
    return {choice: [output.token for output in seen] for choice, seen in (await collect(engine, job)).items()}


async def test_a_seed_reproduces_whatever_else_is_in_the_batch(engine: TorchEngine) -> None:
    job = request(seed=11, temperature=1.0, top_p=0.95, n=3, max_tokens=20)
    alone = await tokens(engine, job)
    others = [
        request(single(name), tuple(range(5, 9 + i)), seed=i, temperature=1.0) for i, name in enumerate(engine.models)
    ]
    together, *_ = await asyncio.gather(tokens(engine, job), *(tokens(engine, other) for other in others))
    assert together == alone
    assert len({tuple(choice) for choice in alone.values()}) == 3, "choices of one request must differ"
    assert await tokens(engine, request(seed=12, temperature=1.0, top_p=0.95, n=3, max_tokens=20)) != alone


async def test_frequencies_of_the_composed_distribution(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    """Chi-square over 3,000 first tokens, false-alarm rate 1e-6 (seeds fixed)."""
    drawn: Counter[int] = Counter()
    for seed in range(50):
        for outputs in (await tokens(engine, request(seed=seed, temperature=1.0, max_tokens=1, n=60))).values():
            drawn.update(outputs)
    probs = cast("list[float]", plain_loop.distribution(PROXY, (CONTEXT,) * 3, []).exp().tolist())
    total = sum(drawn.values())
    common = [token for token in range(VOCAB) if probs[token] * total >= 5]
    observed = [drawn[token] for token in common]
    expected = [probs[token] * total for token in common]
    observed.append(total - sum(observed))
    expected.append(total - sum(expected))
    chi_square: Any = stats.chisquare  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    assert chi_square(observed, expected)[1] > 1e-6
    assert total == 3000


async def test_n_choices_compute_the_prompt_once(members: Mapping[str, Member]) -> None:
    engine = TorchEngine(members)
    generation = engine.generate(request(n=4))
    async for _ in generation:
        pass
    stats_ = engine.stats()
    assert stats_.prefix_hits == 3 * 3 * (len(CONTEXT) - 1)
    await engine.close()


async def test_a_repeated_prompt_is_not_computed_again(members: Mapping[str, Member]) -> None:
    engine = TorchEngine(members)
    first = await tokens(engine, request())
    generation = engine.generate(request())
    again = [output.token async for output in generation]
    assert generation.cached_tokens == len(CONTEXT) - 1
    assert again == first[0]
    await engine.close()


async def test_a_prefix_is_found_with_its_own_salt_alone(members: Mapping[str, Member]) -> None:
    for member in members.values():
        member.cache.clear()
    engine = TorchEngine(members)
    found: list[int] = []
    answers: list[list[int]] = []
    for salt in ("", "one", "two", "one", "", "two"):
        generation = engine.generate(replace(request(), cache_salt=salt))
        answers.append([output.token async for output in generation])
        found.append(generation.cached_tokens)
    whole = len(CONTEXT) - 1
    assert found == [0, 0, 0, whole, whole, whole]
    assert all(answer == answers[0] for answer in answers)
    await engine.close()


def test_check_tells_bytes_and_limits(members: Mapping[str, Member]) -> None:
    core = EngineCore(members, EngineSettings(kv_cache_bytes=200_000))
    per_token = sum(members[stream.model].info.kv_bytes_per_token for stream in PROXY.streams)
    assert core.scheduler.check(request()) == 64 * per_token  # 45 tokens, reserved in steps of 64
    with pytest.raises(RequestTooLarge, match=r"301 tokens .* 'base' \(model 'llama'\).*256"):
        core.scheduler.check(request(max_tokens=264))
    with pytest.raises(RequestTooLarge, match=r"[\d,]+ bytes .* 3 streams; the engine has 200,000"):
        core.scheduler.check(request(max_tokens=200))


async def test_an_unchecked_request_that_can_never_fit_fails_alone(members: Mapping[str, Member]) -> None:
    engine = TorchEngine(members, EngineSettings(kv_cache_bytes=200_000))
    outputs, failed = await asyncio.gather(
        collect(engine, request()), collect(engine, request(max_tokens=200)), return_exceptions=True
    )
    assert isinstance(outputs, dict)
    assert len(outputs[0]) == 8
    assert isinstance(failed, EngineError)
    assert "no memory for the key / value cache" in str(failed)
    assert engine.stats().waiting == 0
    await engine.close()


async def test_more_work_than_memory_waits_its_turn(members: Mapping[str, Member]) -> None:
    """Room for two choices: twelve requests all finish, never more than two at once, within the budget."""
    per_token = sum(members[stream.model].info.kv_bytes_per_token for stream in PROXY.streams)
    for member in members.values():
        member.cache.clear()
    core = EngineCore(members, EngineSettings(kv_cache_bytes=2 * 64 * per_token))
    alone = EngineCore(members)
    expected = [run(alone, request(context=tuple(range(3, 20 + i)))) for i in range(12)]
    for member in members.values():
        member.cache.clear()
    groups = [core.group(request(context=tuple(range(3, 20 + i)))) for i in range(12)]
    for group in groups:
        core.add(group)
    most = 0
    while core.step():
        most = max(most, core.stats().running)
        assert sum(member.cache.nbytes for member in members.values()) <= 2 * 64 * per_token
    assert most == 2
    assert [group.choices[0].generated for group in groups] == expected


def run(core: EngineCore, job: GenerationRequest) -> list[int]:
    group = core.group(job)
    core.add(group)
    while core.step():
        pass
    return group.choices[0].generated


async def test_closing_a_generation_frees_its_slots_within_one_step(engine: TorchEngine) -> None:
    generation = engine.generate(request(max_tokens=200, n=2))
    await generation.__anext__()
    running = engine.stats()
    assert running.kv_bytes_used > 0
    await generation.aclose()
    steps = engine.stats().steps
    while engine.stats().running:  # noqa: ASYNC110  (another thread's state)
        await asyncio.sleep(0.001)
    assert engine.stats().steps <= steps + 1
    assert engine.stats().kv_bytes_used == 0


async def test_stopping_one_choice_leaves_the_others(engine: TorchEngine) -> None:
    generation = engine.generate(request(max_tokens=30, n=2, temperature=1.0, seed=1))
    seen: Counter[int] = Counter()
    async for output in generation:
        seen[output.choice] += 1
        if seen[0] == 3:
            generation.stop_choice(0)
    assert seen[1] == 30
    assert seen[0] == 3


async def test_a_failing_member_fails_its_requests_alone(
    engine: TorchEngine, members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = engine.generate(request(single("qwen"), max_tokens=100))
    doomed = engine.generate(request(max_tokens=100))
    await doomed.__anext__()

    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(members["llama-b"], "_forward", explode)
        with pytest.raises(EngineError, match="model 'llama-b' failed while computing: RuntimeError"):
            async for _ in doomed:
                pass
    assert len([output async for output in healthy]) == 100
    assert len((await collect(engine, request()))[0]) == 8, "the engine goes on, the failed member too"
    assert engine.stats().running == 0


async def test_numbers_that_are_none_fail_the_request(
    engine: TorchEngine, members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = members["llama-c"].forward

    def poisoned(work: Any) -> torch.Tensor:
        return forward(work) * float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(members["llama-c"], "forward", poisoned)
        with pytest.raises(EngineError, match="not a number"):
            await collect(engine, request())
        assert len((await collect(engine, request(single("llama"))))[0]) == 8
    assert len((await collect(engine, request()))[0]) == 8


async def test_steps_are_reported_to_whoever_watches(engine: TorchEngine) -> None:
    """Prefill too, which hands out nothing; every token once."""
    seen: list[StepTimes] = []
    engine.watch_steps(seen.append)
    jobs = [replace(request(n=2), request_id=name) for name in ("first", "second")]
    await asyncio.gather(*(collect(engine, job) for job in jobs))
    assert {name for times in seen for name in times.requests} == {"first", "second"}
    assert sum(times.tokens for times in seen) == 2 * 2 * 8
    assert max(times.choices for times in seen) == 4
    assert all(times.began <= times.ended and times.requests and not times.failures for times in seen)


async def test_closing_the_engine_fails_what_runs(members: Mapping[str, Member]) -> None:
    engine = TorchEngine(members)
    generation = engine.generate(request(max_tokens=200))
    await generation.__anext__()
    await engine.close()
    with pytest.raises(EngineError, match="stopped"):
        async for _ in generation:
            pass
    with pytest.raises(EngineError, match="closed"):
        engine.generate(request())
    assert all(member.cache.num_active == 0 for member in members.values())


async def test_a_defect_of_the_engine_itself_keeps_nobody_waiting(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(members)
    generation = engine.generate(request(max_tokens=200))
    await generation.__anext__()

    def explode() -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(engine, "_cycle", explode)
    with pytest.raises(EngineError, match="the engine died: RuntimeError"):
        async for _ in generation:
            pass
    assert not engine.is_alive
    with pytest.raises(EngineError, match="closed"):
        engine.generate(request())
    await engine.close()


class Panic(BaseException):
    """As pyo3's PanicException is: no Exception."""


def panicking_once(monkeypatch: pytest.MonkeyPatch, member: Member) -> None:
    forward = member.forward

    def panic(work: Any) -> Any:
        monkeypatch.setattr(member, "forward", forward)
        raise Panic

    monkeypatch.setattr(member, "forward", panic)


@pytest.mark.parametrize("restart", [False, True])
async def test_what_is_no_exception_is_told_to_everybody_at_once(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    engine = TorchEngine(members, EngineSettings(max_running=2), restart=restart)
    expected = await tokens(engine, request())
    jobs = [request(max_tokens=200, context=CONTEXT[i:]) for i in range(5)]  # of which two run and three wait
    running = [asyncio.create_task(collect(engine, job)) for job in jobs]
    while engine.stats().waiting < 3:  # noqa: ASYNC110  (no event says so)
        await asyncio.sleep(0.001)
    panicking_once(monkeypatch, members["llama"])
    async with asyncio.timeout(1):
        told = await asyncio.gather(*running, return_exceptions=True)
    assert {str(error) for error in told if isinstance(error, EngineStopped)} == {"the engine died: Panic"}
    assert len(told) == sum(isinstance(error, EngineStopped) for error in told) == 5
    assert engine.is_alive == restart
    if restart:
        assert await tokens(engine, request()) == expected
        assert engine.stats().restarts == 1
    await engine.close()
    assert all(member.cache.num_active == 0 for member in members.values())


async def test_an_engine_that_dies_again_and_again_stays_dead(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TorchEngine(members, restart=True)
    for _ in range(MAX_RESTARTS + 1):
        assert engine.is_alive
        panicking_once(monkeypatch, members["llama"])
        with pytest.raises(EngineStopped, match="died: Panic"):
            await collect(engine, request())
    async with asyncio.timeout(1):
        while engine.is_alive:  # noqa: ASYNC110  (no event says so)
            await asyncio.sleep(0.001)
    with pytest.raises(EngineStopped, match="closed"):
        engine.generate(request())


async def test_end_of_sequence_stop_tokens_and_minimum(engine: TorchEngine) -> None:
    bias = ((EOS, 100.0),)
    outputs = (await collect(engine, request(ignore_eos=False, logit_bias=bias)))[0]
    assert [(output.token, output.finish) for output in outputs] == [(EOS, "stop")]
    outputs = (await collect(engine, request(ignore_eos=False, logit_bias=bias, min_tokens=4)))[0]
    assert [output.finish for output in outputs] == [None] * 4 + ["stop"]
    assert EOS not in [output.token for output in outputs[:4]]
    outputs = (await collect(engine, request(logit_bias=bias)))[0]
    assert len(outputs) == 8
    greedy = (await tokens(engine, request()))[0]
    outputs = (await collect(engine, request(stop_token_ids=(greedy[3],))))[0]
    first = greedy.index(greedy[3])
    assert [output.token for output in outputs] == greedy[: first + 1]
    assert outputs[-1].finish == "stop"


async def test_allowed_tokens_outside_the_plausible_set_are_composed_without_it(
    engine: TorchEngine, plain_loop: PlainLoop
) -> None:
    """Classification by allowed labels must have an answer, also where the composition masks all labels."""
    streams = (Stream("base", "llama"), Stream("amateur", "qwen", -0.5))
    plan = Plan(streams, (TokenSet(0, "ratio", 0.9),))
    composed = plain_loop.distribution(plan, (CONTEXT,) * 2, [])
    masked = [token for token in range(VOCAB) if composed[token] == -math.inf][:5]
    outputs = (await collect(engine, request(plan, allowed_token_ids=tuple(masked), max_tokens=1)))[0]
    bare = plain_loop.distribution(Plan(streams), (CONTEXT,) * 2, [])[masked].log_softmax(-1)
    assert outputs[0].token == masked[int(bare.argmax())]
    assert outputs[0].logprob == pytest.approx(float(bare.max()), abs=1e-4)


class Alternating:
    """Even tokens after an even number of tokens, odd ones after an odd number."""

    text = ""

    def start(self, ends: Sequence[int]) -> Alternating:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        words = (VOCAB + 31) // 32
        return (0xAAAAAAAA if len(generated) % 2 else 0x55555555).to_bytes(4, "little") * words


async def test_a_grammar_says_what_may_follow(engine: TorchEngine) -> None:
    """Only in its own request, only where tokens are drawn, and told anew after every token."""
    bound = request(PROXY, grammar=Alternating(), temperature=1.0, seed=0, trace_top=0)
    answers = await asyncio.gather(collect(engine, bound), collect(engine, request(PROXY)))
    free = (await collect(engine, request(PROXY)))[0]
    assert [output.token for output in answers[1][0]] == [output.token for output in free]
    outputs = answers[0][0]
    assert [output.token % 2 for output in outputs] == [place % 2 for place in range(len(outputs))]
    assert len(outputs) == 8


class Two:
    """Two tokens, and no more; a third may follow where `more`."""

    text = ""

    def __init__(self, *, more: bool = False) -> None:
        self.more = more

    def start(self, ends: Sequence[int]) -> Two:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        any_letter, may_end = (1 << 7) - 1 << 8, 1 << EOS
        mask = any_letter if len(generated) < 2 else may_end | (any_letter if self.more else 0)
        return mask.to_bytes((VOCAB + 31) // 32 * 4, "little")


async def test_a_finished_grammar_ends_the_answer_before_its_minimum(engine: TorchEngine) -> None:
    for plan in (single("llama"), PROXY):
        fixed: dict[str, Any] = {"ignore_eos": False, "min_tokens": 6, "logit_bias": ((EOS, 100.0),)}
        outputs = (await collect(engine, request(plan, grammar=Two(), **fixed)))[0]
        assert [(output.token == EOS, output.finish) for output in outputs] == [(False, None)] * 2 + [(True, "stop")]
        outputs = (await collect(engine, request(plan, grammar=Two(more=True), **fixed)))[0]
        assert [output.token == EOS for output in outputs] == [False] * 6 + [True]
        fixed["ignore_eos"], fixed["min_tokens"] = True, 0
        outputs = (await collect(engine, request(plan, grammar=Two(), **fixed)))[0]
        assert [(output.token == EOS, output.finish) for output in outputs] == [(False, None)] * 2 + [(True, "stop")]
        outputs = (await collect(engine, request(plan, grammar=Two(more=True), **fixed)))[0]
        assert [(output.token == EOS, output.finish) for output in outputs[-1:]] == [(False, "length")]


async def test_masks_that_leave_nothing_are_the_requests_fault(engine: TorchEngine) -> None:
    with pytest.raises(NoTokenPossible, match="no token is possible at position 0"):
        await collect(engine, request(allowed_token_ids=(5,), bad_words=((5,),)))
    assert len((await collect(engine, request()))[0]) == 8


async def test_allowed_tokens_and_bad_words(engine: TorchEngine) -> None:
    outputs = (await collect(engine, request(allowed_token_ids=(9, 10, 11), temperature=1.0, seed=0, top_logprobs=5)))[
        0
    ]
    assert {output.token for output in outputs} <= {9, 10, 11}
    assert sum(pow(2.718281828459045, value) for _, value in outputs[0].top if value > -1e9) == pytest.approx(
        1.0, abs=1e-4
    )
    greedy = (await tokens(engine, request()))[0]
    out = (await tokens(engine, request(bad_words=((greedy[0],),))))[0]
    assert greedy[0] not in out
    out = (await tokens(engine, request(bad_words=((greedy[0], greedy[1]),))))[0]
    assert out[0] == greedy[0]
    assert out[1] != greedy[1]


def test_allowed_tokens_become_a_tensor_once(members: Mapping[str, Member]) -> None:
    """They may be as many as the vocabulary has, and were made into one in every step of every choice."""
    group = EngineCore(members).group(request(allowed_token_ids=(5, 7), n=2))
    tensors = {id(choice.allowed.on(torch.device("cpu"))) for choice in group.choices * 2 if choice.allowed is not None}
    assert len(tensors) == 1


async def test_penalties_change_what_they_should(engine: TorchEngine, plain_loop: PlainLoop) -> None:
    plan = single("llama")
    job = request(plan, presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.3, max_tokens=12)
    shared: list[int] = []
    for token in (await tokens(engine, job))[0]:
        scores = plain_loop.distribution(plan, (CONTEXT,), shared)
        for seen in {*CONTEXT, *shared}:
            scores[seen] *= 1.3 if scores[seen] < 0 else 1 / 1.3
        for seen, count in Counter(shared).items():
            scores[seen] -= 1.5 + 0.5 * count
        assert token == int(scores.argmax())
        shared.append(token)


async def test_bfloat16_runs(paths: Mapping[str, Path]) -> None:
    loaded = {
        name: load_member(name, str(paths[name]), dtype=torch.bfloat16) for name in ("llama", "llama-b", "llama-c")
    }
    engine = TorchEngine(loaded)
    outputs = (await collect(engine, request(n=2, max_tokens=20)))[1]
    assert all(-30 < output.logprob <= 0 for output in outputs)
    assert loaded["llama"].info.dtype == "bfloat16"
    await engine.close()


def test_refused_checkpoints(paths: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="could not be read"):
        load_member("none", str(tmp_path / "nothing"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in paths["llama"].iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(ModelLoadError, match="'broken' could not be read"):
        load_member("broken", str(broken))
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for file in paths["llama"].iterdir():
        (lacking / file.name).write_bytes(file.read_bytes())
    tensors: Any = safetensors.torch
    weights = tensors.load_file(lacking / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    tensors.save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks or misshapes model.layers.1.mlp.up_proj.weight"):
        load_member("lacking", str(lacking))


def test_an_architecture_without_our_attention_is_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="BloomForCausalLM"):
        load_member("bloom", str(tmp_path))


def test_what_is_supported(members: Mapping[str, Member]) -> None:
    engine = TorchEngine(members)
    assert engine.supports(PROXY) is None
    assert engine.supports(single("absent")) == "model 'absent' is not loaded"
    asyncio.run(engine.close())


async def test_a_closed_engine_holds_no_weights(paths: Mapping[str, Path]) -> None:
    """Others may still hold the engine itself: web frameworks keep what they have called in caches of their own."""
    member = load_member("llama", str(paths["llama"]), dtype=torch.float32)
    engine, weights = TorchEngine({"llama": member}), weakref.ref(member.model)
    asked = request(single("llama"), max_tokens=2)
    await tokens(engine, asked)
    del member
    gc.collect()
    assert weights() is not None
    await engine.close()
    gc.collect()
    assert weights() is None
    assert engine.stats().steps > 0, "what it has done is still told"
    for ask in (partial(engine.generate, asked), partial(engine.check, asked), partial(engine.supports, asked.plan)):
        with pytest.raises(EngineStopped, match="the engine is closed"):
            ask()


async def test_what_came_as_an_engine_closed_is_not_held(paths: Mapping[str, Path]) -> None:
    """It may be a model that was to be attached in the last step."""
    member = load_member("late", str(paths["llama"]), dtype=torch.float32)
    engine, weights = TorchEngine({}), weakref.ref(member.model)
    engine._arrivals.append(partial(engine._core.use, {"late": member}))  # pyright: ignore[reportPrivateUsage]
    await engine.close()
    del member
    gc.collect()
    assert weights() is None


def test_rows_beyond_the_shared_width_are_never_produced(paths: Mapping[str, Path]) -> None:
    narrow = load_member("narrow", str(paths["qwen"]), dtype=torch.float32, vocab_size=100)
    core = EngineCore({"narrow": narrow})
    assert max(run(core, request(single("narrow"), max_tokens=60, temperature=2.0, seed=0))) < 100


@pytest.mark.parametrize("plan", [PROXY, single("llama")])
async def test_named_tokens_are_reported_as_the_best_would_be(engine: TorchEngine, plan: Plan) -> None:
    """With and without a trace, beside a request that reports its best."""
    both = await asyncio.gather(
        collect(engine, request(plan, top_logprobs=VOCAB)),
        collect(engine, request(plan, logprob_token_ids=(9, 4, 40), top_logprobs=3)),
        collect(engine, request(plan, logprob_token_ids=(4,), top_logprobs=1, trace_top=2)),
    )
    best, named, traced = (outputs[0] for outputs in both)
    for one, other, third in zip(best, named, traced, strict=True):
        known = dict(one.top)
        assert one.token == other.token == third.token
        assert {token for token, _ in other.top} == {4, 9, 40}
        assert [value for _, value in other.top] == sorted((value for _, value in other.top), reverse=True)
        for token, value in (*other.top, *third.top):
            assert value == pytest.approx(known[token], abs=1e-4)
        assert third.trace is not None
        assert [token for token, _ in third.trace.composed_top] == [token for token, _ in one.top[:2]]


def test_choices_share_what_their_streams_read(engine: TorchEngine) -> None:
    """A thousand choices that wait, with copies of a long prompt for each of their streams, were gigabytes."""
    core = EngineCore(engine._core.members)  # pyright: ignore[reportPrivateUsage]
    first, *others = core.group(request(n=5)).choices
    for choice in others:
        for own, shared in zip(choice.streams, first.streams, strict=True):
            assert own.context is shared.context
