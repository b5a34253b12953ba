"""Guessing is paid for by what it brings: prices, records, and the credit that no choice may overdraw."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import Mock

import pytest
from torch import Tensor

from motet.composers.plan import Plan, single
from motet.engines.base import GenerationRequest
from motet.engines.drafts import OFF, Speculation
from motet.engines.torch import EngineCore, EngineSettings, Member, pace
from motet.engines.torch.draft_weights import is_guessing
from motet.engines.torch.model import ModelWork
from motet.engines.torch.pace import Stake, plain_of
from motet.engines.torch.prices import Prices
from motet.engines.torch.records import REMEMBERED, Record, Records
from motet.engines.torch.repeats import Repeats
from motet.engines.torch.work import Work
from tests.engines.test_exactness import plan_of, request_for


def test_prices_lie_between_their_neighbours() -> None:
    prices = Prices()
    assert prices.of(3) == 0.0
    for tokens, seconds in ((1, 0.1), (5, 0.14), (128, 1.4)):
        prices.observe(tokens, seconds)
    assert prices.of(0) == 0.0
    assert prices.of(1) == 0.1
    assert prices.of(3) == pytest.approx(0.12)
    assert 0.14 < prices.of(20) < prices.of(100) < 1.4
    assert 1.4 < prices.of(256) < 14


def test_one_slow_forward_moves_no_price() -> None:
    prices = Prices()
    for seconds in (0.1, 0.1, 5.0, 0.1, 0.1):
        prices.observe(1, seconds)
    assert prices.of(1) == 0.1
    for _ in range(5):
        prices.observe(1, 0.3)
    assert prices.of(1) == 0.3, "the machine has become slower"


def test_a_price_of_a_bad_moment_does_not_stay() -> None:
    """Where guesses are always verified, no forward over a single token tells that it has become cheap again."""
    prices = Prices()
    prices.observe(1, 0.25)
    prices.observe(8, 0.12)
    assert [prices.of(tokens) for tokens in (1, 4, 8)] == pytest.approx([0.12, 0.12, 0.12])
    prices.observe(8, 0.4)
    prices.observe(8, 0.4)
    assert prices.of(1) == 0.25


def test_nor_does_that_of_a_good_one() -> None:
    """Where the machine has become slower, long forwards that were not met again do not make short ones cheap."""
    prices = Prices()
    for tokens in (1, 2, 9):
        prices.observe(tokens, 0.1)
    for _ in range(9):
        prices.observe(1, 0.3)
        prices.observe(2, 0.3)
    assert prices.of(1) == prices.of(2) == 0.3


def test_a_record_learns_what_sureness_is_worth() -> None:
    rng = random.Random(0)
    record = Record(0.8)
    assert record.acceptance == 0.8
    for _ in range(400):
        record.add(0.999, rng.random() < 0.98)
        record.add(0.4, rng.random() < 0.2)
    assert record.probability(0.999) == pytest.approx(0.98, abs=0.03)
    assert record.probability(0.4) == pytest.approx(0.2, abs=0.06)
    assert record.acceptance == pytest.approx(0.59, abs=0.05)


def test_what_did_not_pay_is_tried_again() -> None:
    record = Record(0.8)
    for _ in range(100):
        record.add(0.6, False)
    for _ in range(9):
        record.judged(False, 10)
    assert record.acceptance < 0.1
    record.judged(False, 10)
    assert record.acceptance == 0.8


def test_records_of_old_compositions_go() -> None:
    records = Records()
    first = records.of("first", 0.5)
    assert records.of("first", 0.5) is first
    for number in range(REMEMBERED):
        records.of(number, 0.5)
    assert records.of("first", 0.5) is not first


def test_repeats_guess_what_followed_last() -> None:
    repeats = Repeats()
    text = [1, 2, 3, 4, 5, 9, 9, 2, 3]
    assert repeats.guess(text, 3) == ([4, 5, 9], 2)
    text += [4]
    assert repeats.guess(text, 8) == ([5, 9, 9, 2, 3, 4], 3)
    text += [7, 2, 3, 4]
    assert repeats.guess(text, 2) == ([7, 2], 3), "the last place, not the first"
    assert repeats.guess([*text, 100], 2) == ([], 0)


class Clock:
    """Time that passes in forwards alone: by a member's own price and its number of tokens."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, members: Mapping[str, Member], *, per_token: float = 0.05
    ) -> None:
        self.now, self._per_token = 0.0, per_token
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        for name, member in members.items():
            member.prices = Prices()
            member.draft_prices = Prices() if member.draft_prices else None
            inner = member._forward  # pyright: ignore[reportPrivateUsage]
            monkeypatch.setattr(member, "_forward", self.slowed(inner, 0.04 if name == "llama-b" else 0.1))

    def slowed(self, forward: Callable[[Sequence[ModelWork]], Tensor], seconds: float) -> Any:
        def run(work: Sequence[ModelWork]) -> Tensor:
            price = seconds / 3 if is_guessing() else seconds  # weights in 4 bits are a third to read
            self.now += price * (1 + self._per_token * sum(len(item.tokens) for item in work))
            return forward(work)

        return run


def leaning(weight: float) -> Plan:
    """A composition of the cheap llama-b, with this weight, and the dear llama."""
    return plan_of(
        "llama",
        {
            "strategy": "product",
            "members": [{"model": "llama", "weight": 1 - weight}, {"model": "llama-b", "weight": weight}],
        },
    )


def seconds_of(core: EngineCore, clock: Clock, jobs: Sequence[GenerationRequest]) -> list[float]:
    """When each request was done, all of them asked at once."""
    groups = [core.group(job) for job in jobs]
    began, done = clock.now, dict[int, float]()
    for group in groups:
        core.add(group)
    while core.step():
        done |= {i: clock.now - began for i, group in enumerate(groups) if group.finished and i not in done}
    return [done[i] for i in range(len(groups))]


def ratios(members: Mapping[str, Member], clock: Clock, rounds: Sequence[Sequence[GenerationRequest]]) -> list[float]:
    """Each request's time with guesses over its time without; one engine after the other has all the rounds."""
    found: list[list[float]] = []
    for wished in (OFF, Speculation()):
        for member in members.values():
            member.cache.clear()
        core = EngineCore(members, EngineSettings(speculation=wished))
        found.append([done for jobs in rounds for done in seconds_of(core, clock, jobs)])
    return [guessing / plain for plain, guessing in zip(*found, strict=True)]


def test_a_good_draft_makes_answers_faster(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    clock = Clock(monkeypatch, members)
    rounds = [[request_for(leaning(0.9), rng, max_tokens=80)] for _ in range(6)]
    found = ratios(members, clock, rounds)
    assert max(found) <= 1.05
    assert statistics.mean(found[2:]) < 0.75


@pytest.mark.parametrize("weight", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("tokens", [3, 12, 80])
def test_no_draft_makes_answers_slower(
    guessers: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch, weight: float, tokens: int
) -> None:
    rng = random.Random(tokens)
    clock = Clock(monkeypatch, guessers)
    rounds = [
        [request_for(leaning(weight), rng, max_tokens=tokens, temperature=1.0, seed=1)]
        for _ in range(12 if tokens < 80 else 5)
    ]
    assert max(ratios(guessers, clock, rounds)) <= 1.05


def test_nobody_pays_for_anothers_guesses(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with good drafts, with bad ones and with none, side by side."""
    rng = random.Random(3)
    clock = Clock(monkeypatch, members)
    plans = [leaning(0.95), leaning(0.05), single("qwen")]
    rounds = [[request_for(plans[(i + k) % 3], rng, max_tokens=60) for k in range(1 + i % 4)] for i in range(8)]
    assert max(ratios(members, clock, rounds)) <= 1.05


def test_guesses_do_not_keep_prompts_waiting(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of many requests to decode would guess well, but tokens are dear and the others read their prompts."""
    rng = random.Random(8)
    clock = Clock(monkeypatch, members, per_token=0.2)
    lone = [[request_for(leaning(0.95), rng, max_tokens=40)] for _ in range(4)]
    crowd = [request_for(leaning(0.95), rng, max_tokens=8) for _ in range(12)]
    found: list[float] = []
    for wished in (OFF, Speculation()):
        for member in members.values():
            member.cache.clear()
        core = EngineCore(members, EngineSettings(speculation=wished))
        for jobs in lone:
            seconds_of(core, clock, jobs)
        found.append(max(seconds_of(core, clock, crowd)))
    plain, guessing = found
    assert core.stats().draft_tokens
    assert guessing <= (1 + 1e-9) * plain


def test_guesses_leave_a_step_that_is_measured_alone(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with guesses does not tell what an ordinary one takes: prompts would wait for another, again and again."""
    rng = random.Random(9)
    Clock(monkeypatch, members)
    crowd = [request_for(leaning(0.95), rng, max_tokens=80) for _ in range(12)]
    found: list[int] = []
    for wished in (OFF, Speculation()):
        for member in members.values():
            member.cache.clear()
        core = EngineCore(members, EngineSettings(speculation=wished, prefill_chunk=4))
        groups = [core.group(job) for job in crowd]
        for group in groups[:3]:  # these decode, and guess, while the others read
            core.add(group)
        for _ in range(8):
            core.step()
        for group in groups[3:]:
            core.add(group)
        measured, guesses = 0, core.stats().draft_tokens
        while core.step():
            measured += core.scheduler.is_measuring
            assert not core.scheduler.is_measuring or core.stats().draft_tokens == guesses
            guesses = core.stats().draft_tokens
        found.append(measured)
    plain, guessing = found
    assert core.stats().draft_tokens
    assert plain > 0
    assert guessing <= plain + 1


def test_a_draft_that_is_not_begun_for_its_price_is_tried_again(
    members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is thought to pay, but nothing is learnt of it, however long: neither its price nor whether it is right."""
    believed_anew: list[bool] = []
    judged = Record.judged

    def noted(record: Record, taken: bool, patience: int) -> bool:
        believed_anew.append(judged(record, taken, patience))
        return believed_anew[-1]

    Clock(monkeypatch, members)
    monkeypatch.setattr(Record, "judged", noted)
    monkeypatch.setattr(pace, "TRIFLE", -1.0)
    monkeypatch.setattr(Stake, "_pays", Mock(return_value=False))
    monkeypatch.setattr(pace, "RETRY_AFTER", 4)
    core = EngineCore(members, EngineSettings(speculation=Speculation(draft="llama-b")))
    core.add(core.group(request_for(leaning(0.9), random.Random(0), max_tokens=8 * 8)))
    while core.step():
        pass
    assert not core.stats().draft_tokens
    assert any(believed_anew)


def test_a_batch_is_added_up_once_a_step(members: Mapping[str, Member], monkeypatch: pytest.MonkeyPatch) -> None:
    """For each choice that judges its drafts it took longer than the forward of a small model."""
    steps: list[Sequence[Work]] = []

    def noted(work: Sequence[Work]) -> Any:
        steps.append(work)
        return plain_of(work)

    monkeypatch.setattr(pace, "plain_of", noted)
    rng = random.Random(5)
    core = EngineCore(members, EngineSettings(speculation=Speculation()))
    for job in (request_for(leaning(0.5), rng, max_tokens=20) for _ in range(6)):
        core.add(core.group(job))
    while core.step():
        pass
    assert max(len(work) for work in steps) == 6
    assert len(steps) <= core.num_steps
