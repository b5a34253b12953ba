"""How prompts share the steps: counted in steps, and in the seconds of a machine whose forwards take what we say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from motet.composers.plan import Plan, Stream, single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, EngineSettings, Member
from motet.engines.torch import model as model_module
from motet.engines.torch.choice import Choice
from motet.engines.torch.model import ModelWork
from motet.engines.torch.tempo import LEAST_CHUNK, MEASURE_EVERY
from tests.tiny import VOCAB

LONG = tuple(3 + i % 97 for i in range(4000))
SHORT = tuple(range(5, 25))
CACHE = 1 << 30


@dataclass
class Machine:
    """Members whose forwards compute nothing and take what a 0.5 B model took on two cores (see benchmarks/latency.py):
    28 ms for the weights, 0.87 ms more per row, 0.85 ms per token of a prompt, and 0.56 µs per token that it sees."""

    slowness: float = 1.0
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward(self, work: Sequence[ModelWork]) -> torch.Tensor:
        rows = sum(len(item.tokens) == 1 for item in work)
        milliseconds = 28.0 + 0.87 * max(0, rows - 1)
        for item in work:
            count = len(item.tokens)
            if count > 1:
                milliseconds += count * (0.85 + 0.56e-3 * (item.start + count / 2))
        self.now += self.slowness * milliseconds / 1000
        return torch.zeros(sum(item.num_logits for item in work), VOCAB)


@pytest.fixture
def machine(members: dict[str, Member], monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(model_module, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    for member in members.values():
        monkeypatch.setattr(member, "_forward", machine.forward)
    return machine


def core_of(members: dict[str, Member], **settings: Any) -> EngineCore:
    return EngineCore(members, EngineSettings(kv_cache_bytes=CACHE, **settings))


def start(core: EngineCore, context: tuple[int, ...], max_tokens: int, plan: Plan | None = None) -> Choice:
    plan = plan or single("llama")
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    group = core.group(GenerationRequest("r", plan, (context,) * len(plan.streams), sampling))
    core.add(group)
    return group.choices[0]


def step(core: EngineCore, machine: Machine) -> float:
    """Seconds of a step."""
    before = machine.now
    assert core.step() is not None
    return machine.now - before


def steps_until(core: EngineCore, choice: Choice) -> int:
    count = 0
    while choice.num_generated == 0:
        core.step()
        count += 1
    return count


def decoding(core: EngineCore, machine: Machine, count: int) -> float:
    """Starts requests that decode, and returns the seconds of an ordinary step."""
    choices = [start(core, tuple(range(3, 40 + i)), 2000) for i in range(count)]
    while not all(choice.is_decoding for choice in choices):
        step(core, machine)
    return max(step(core, machine) for _ in range(3))


def test_a_short_request_does_not_wait_behind_long_prompts(members: dict[str, Member], machine: Machine) -> None:
    core = core_of(members)
    for offset in range(4):
        start(core, LONG[offset:], 50)
    for _ in range(5):
        core.step()
    assert steps_until(core, start(core, SHORT, 1)) <= 3


@pytest.mark.parametrize("count", [1, 16])
def test_decoding_goes_on_while_a_long_prompt_is_read(members: dict[str, Member], machine: Machine, count: int) -> None:
    core = core_of(members)
    ordinary = decoding(core, machine, count)
    long = start(core, LONG, 1)
    times: list[float] = []
    while not long.finished:
        times.append(step(core, machine))
    times.sort()
    assert times[math.ceil(0.99 * len(times)) - 1] <= 2 * ordinary
    assert len(times) <= len(LONG) / LEAST_CHUNK, "the prompt gets no less than its share"


def test_a_short_request_starts_beside_a_long_prompt_and_decoding(members: dict[str, Member], machine: Machine) -> None:
    """However far the long prompt is; the request arrives in the middle of a step."""
    core = core_of(members)
    ordinary = decoding(core, machine, 16)
    start(core, LONG, 2000)
    waits: list[float] = []
    for i in range(20):
        before = [step(core, machine) for _ in range(7)][-1]
        choice = start(core, tuple(range(30 + i, 54 + i)), 1)
        count = 0
        while not choice.finished:
            before += 2 * step(core, machine)
            count += 1
        waits.append(before / 2)
        assert count <= 2, "its prompt is read in one step, unless that one measures what a step takes without prompts"
    assert sorted(waits)[-2] <= 3 * ordinary


def test_a_long_prompt_is_not_starved_by_short_ones(members: dict[str, Member], machine: Machine) -> None:
    """Two new short requests in every step; the long one gets its part of each."""
    core = core_of(members)
    decoding(core, machine, 4)
    long = start(core, LONG, 1)
    count = 0
    while not long.finished:
        for i in (0, 1):
            start(core, tuple(3 + (7 * count + 50 * i + j) % 120 for j in range(20)), 1)
        core.step()
        count += 1
        assert count < len(LONG)


@pytest.mark.parametrize("beside", [False, True])
def test_settings_limit_what_time_would_allow(members: dict[str, Member], machine: Machine, beside: bool) -> None:
    limits = {"prefill_chunk": 48, "idle_prefill_chunk": 96}
    core = core_of(members, **limits, stretch=math.inf, idle_stretch=math.inf)
    if beside:
        decoding(core, machine, 1)
    long = start(core, LONG[::-1], 1)  # of which nothing is cached
    sizes: list[int] = []
    for _ in range(8):
        before = long.streams[0].computed
        core.step()
        sizes.append(long.streams[0].computed - before)
    assert max(sizes) == (48 if beside else 96)


def test_a_chunk_costs_alike_on_slow_and_fast_machines(members: dict[str, Member], machine: Machine) -> None:
    """A machine that becomes ten times slower meanwhile reads as much per step, once that is known."""
    core = core_of(members)
    decoding(core, machine, 16)
    long = start(core, LONG, 1)
    read = [0]
    for slowness, steps in ((1.0, 80), (10.0, 4 * MEASURE_EVERY)):  # three of the last five ordinary steps are slow
        machine.slowness = slowness
        for _ in range(steps):
            core.step()
            read.append(long.streams[0].computed)
    slow, fast = read[-1] - read[-21], read[80] - read[60]
    assert slow == pytest.approx(fast, rel=0.4)


def test_a_composed_request_reads_for_all_its_streams_within_the_step(
    members: dict[str, Member], machine: Machine
) -> None:
    core = core_of(members)
    proxy = Plan((Stream("base", "llama"), Stream("expert", "llama-b", 1.0), Stream("anti", "llama-c", -1.0)))
    choice = start(core, SHORT, 2000, proxy)
    while not choice.is_decoding:
        step(core, machine)
    ordinary = max(step(core, machine) for _ in range(3))
    long = start(core, LONG, 1, proxy)
    times: list[float] = []
    while not long.finished:
        times.append(step(core, machine))
    times.sort()
    assert times[math.ceil(0.99 * len(times)) - 1] <= 2 * ordinary


def test_a_model_that_nobody_decodes_is_read_at_a_fair_price(members: dict[str, Member], machine: Machine) -> None:
    """Its weights are read in any case: a chunk is worth them."""
    core = core_of(members)
    ordinary = decoding(core, machine, 1)
    long = start(core, LONG, 1, single("qwen"))
    count = 0
    while not long.finished:
        assert step(core, machine) <= 4 * ordinary
        count += 1
    assert count <= len(LONG) / LEAST_CHUNK
