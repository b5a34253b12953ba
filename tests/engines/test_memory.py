"""Slots grow with their streams, and choices that had to give theirs up go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, RequestTooLarge
from motet.engines.outputs import TokenOutput
from motet.engines.torch import EngineCore, EngineSettings, Member
from motet.engines.torch import memory as memory_module
from motet.engines.torch.choice import ChoiceGroup
from tests.engines.test_engine import CONTEXT, PROXY, Alternating, request
from tests.engines.test_rules import judged_request, text_of

Outputs = dict[tuple[int, int], list[TokenOutput]]
ROOMY = 1 << 30


@pytest.fixture
def short_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of few tokens grow several times."""
    monkeypatch.setattr(memory_module, "SHORTEST", 4)
    monkeypatch.setattr(memory_module, "FIRST_LENGTH", 8)


def scored(seed: int) -> GenerationRequest:
    text = text_of(seed, 40)
    job = judged_request(f"scored{seed}", text[:5], trace_top=2)
    return replace(job, forced=text[5:], sampling=replace(job.sampling, max_tokens=25))


def of_all_kinds() -> list[GenerationRequest]:
    """What a choice carries along: random numbers, counts, a grammar, sums of a rule, positions that are reported."""
    judged = judged_request("judged", text_of(1, 30), top_logprobs=3)
    return [
        request(n=3, max_tokens=60, temperature=1.0, seed=1, top_p=0.95, frequency_penalty=0.3, repetition_penalty=1.2),
        replace(judged, sampling=replace(judged.sampling, max_tokens=50)),
        request(PROXY, CONTEXT[:9], max_tokens=50, grammar=Alternating(), temperature=1.0, seed=3, trace_top=3),
        scored(2),
        scored(3),
        request(single("qwen"), CONTEXT[:20], max_tokens=70, min_tokens=3, bad_words=((7,), (8, 9))),
        request(single("mistral"), CONTEXT[:5], max_tokens=90, trace_top=0),
    ]


def run(core: EngineCore, jobs: list[GenerationRequest], budget: int) -> Outputs:
    """The outputs of every choice of every request, which all arrive at once."""
    groups = [core.group(job) for job in jobs]
    for group in groups:
        core.add(group)
    outputs: Outputs = {}
    for choice, output in steps(core, budget):
        outputs.setdefault((groups.index(choice), output.choice), []).append(output)
    return outputs


def steps(core: EngineCore, budget: int) -> Iterator[tuple[ChoiceGroup, TokenOutput]]:
    while (step := core.step()) is not None:
        assert not step.failures
        assert sum(member.cache.nbytes for member in core.members.values()) <= budget
        for choice, output in step.outputs:
            yield choice.group, output


def assert_alike(outputs: Outputs, expected: Outputs) -> None:
    """The same tokens to the last one, each reported once; log-probs but for the rounding of other chunks."""
    assert outputs.keys() == expected.keys()
    for key, own in outputs.items():
        wanted = expected[key]
        assert [(o.token, o.forced, o.finish) for o in own] == [(o.token, o.forced, o.finish) for o in wanted]
        assert [o.logprob for o in own] == pytest.approx([o.logprob for o in wanted], abs=1e-4)
        for mine, other in zip(own, wanted, strict=True):
            assert [token for token, _ in mine.top] == [token for token, _ in other.top]
            assert (mine.trace is None) == (other.trace is None)
            if mine.trace is not None and other.trace is not None:
                assert mine.trace.member_logprobs == pytest.approx(other.trace.member_logprobs, abs=1e-4)
                assert (mine.trace.kl, mine.trace.base_rank) == pytest.approx(
                    (other.trace.kl, other.trace.base_rank), abs=1e-3
                )


@pytest.mark.parametrize("chunk", [8, 512])
def test_preempted_answers_are_those_of_an_engine_with_memory(
    members: Mapping[str, Member], short_slots: None, chunk: int
) -> None:
    jobs = of_all_kinds()
    roomy = EngineCore(members, EngineSettings(kv_cache_bytes=ROOMY))
    expected = run(roomy, jobs, ROOMY)
    assert roomy.stats().preemptions == 0
    for member in members.values():
        member.cache.clear()
    budget = max(roomy.scheduler.check(job) for job in jobs)
    settings = EngineSettings(kv_cache_bytes=budget, prefill_chunk=chunk, idle_prefill_chunk=chunk)
    tight = EngineCore(members, settings)
    assert_alike(run(tight, jobs, budget), expected)
    assert tight.stats().preemptions >= 5
    assert tight.stats().running == tight.stats().waiting == tight.stats().kv_bytes_used == 0


@pytest.mark.parametrize("every", [2, 3, 7])
def test_whenever_a_choice_is_preempted_its_answer_stays(members: Mapping[str, Member], every: int) -> None:
    """While its prompt is read and judged, while it is scored, while it is written; again and again."""
    settings = EngineSettings(prefill_chunk=8, idle_prefill_chunk=8)
    jobs = of_all_kinds()
    expected = run(EngineCore(members, settings), jobs, ROOMY)
    core = EngineCore(members, settings)
    groups = [core.group(job) for job in jobs]
    for group in groups:
        core.add(group)
    outputs: Outputs = {}
    for count, (group, output) in enumerate(steps(core, ROOMY)):
        outputs.setdefault((groups.index(group), output.choice), []).append(output)
        if count % every == 0 and core.scheduler.running and count < 400:
            with torch.inference_mode():
                core.scheduler._preempt(core.scheduler.running[count % len(core.scheduler.running)])  # pyright: ignore[reportPrivateUsage]
    assert_alike(outputs, expected)


def test_the_youngest_gives_way(members: Mapping[str, Member], short_slots: None) -> None:
    """And the first come is never the one."""
    per_token = members["llama"].info.kv_bytes_per_token
    core = EngineCore(members, EngineSettings(kv_cache_bytes=64 * per_token))
    groups = [core.group(request(single("llama"), CONTEXT[i : i + 4], max_tokens=60)) for i in range(4)]
    for group in groups:
        core.add(group)
    while core.step():
        running = [group for group in groups if group.choices[0] in core.scheduler.running]
        assert running == [group for group in groups if not group.finished][: len(running)]
    assert core.stats().preemptions > 0
    assert all(group.choices[0].num_generated == 60 for group in groups)


def test_a_limit_is_no_reservation(members: Mapping[str, Member], short_slots: None) -> None:
    """An answer that may become long reserved all of it, and the next one waited."""
    per_token = members["llama"].info.kv_bytes_per_token
    core = EngineCore(members, EngineSettings(kv_cache_bytes=300 * per_token))
    groups = [core.group(request(single("llama"), CONTEXT[i : 5 + i], max_tokens=200)) for i in range(4)]
    for group in groups:
        core.add(group)
        assert core.scheduler.check(group.request) == 256 * per_token
    core.step()
    core.step()
    assert core.stats().running == 4
    assert core.stats().kv_bytes_used == 4 * 8 * per_token


def test_a_long_request_makes_no_other_slot_long(members: Mapping[str, Member]) -> None:
    core = EngineCore(members)
    for i in range(8):
        core.add(core.group(request(single("llama"), CONTEXT[i:], max_tokens=100)))
    core.step()
    before = members["llama"].cache.nbytes
    core.add(core.group(request(single("llama"), CONTEXT * 50, max_tokens=100)))
    core.step()
    core.step()
    assert core.stats().running == 9
    grown = members["llama"].cache.nbytes - before
    assert grown <= max(4 * 2048 * members["llama"].info.kv_bytes_per_token, core.stats().kv_bytes_budget // 32)


def test_what_can_never_fit_is_refused_and_what_just_fits_is_not(members: Mapping[str, Member]) -> None:
    """Slots of the usual lengths would not fit: they are cut to the request."""
    per_token = members["llama"].info.kv_bytes_per_token
    core = EngineCore(members, EngineSettings(kv_cache_bytes=192 * per_token))
    job = request(single("llama"), CONTEXT[:10], max_tokens=182)
    assert core.scheduler.check(job) == 192 * per_token
    with pytest.raises(RequestTooLarge, match=r"256|bytes"):
        core.scheduler.check(replace(job, sampling=replace(job.sampling, max_tokens=183)))
    assert len(run(core, [job], 192 * per_token)[0, 0]) == 182


def test_finished_prefixes_stay_while_memory_is_free(members: Mapping[str, Member]) -> None:
    core = EngineCore(members, EngineSettings(kv_cache_bytes=ROOMY))
    for repeat in range(2):
        for i in range(4):
            run(core, [request(single("llama"), (3 + i, *CONTEXT), max_tokens=3)], ROOMY)
        if repeat == 0:
            assert core.stats().prefix_hits == 0
    assert core.stats().prefix_hits == 4 * len(CONTEXT)
