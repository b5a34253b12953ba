"""Model Runner V2's batch and sampler over fakes of what that runner hands over."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from motet.composers.plan import single
from motet.engines.base import SamplingParams
from motet.engines.vllm.internals import touch
from motet.engines.vllm.slot_sampler import Slots, SlotSampler
from motet.engines.vllm.table import DrawnStep, Row, Table
from motet.engines.vllm.wire import Link, RowSpec

DRAWN = SamplingParams(max_tokens=8)


@dataclass
class Inner:
    """vLLM's sampler: every request gets token 99, unless it is still reading its prompt."""

    temperature: float = 0.5
    calls: int = 0

    def __call__(self, logits: torch.Tensor, batch: Any, *drafts: Any) -> Any:
        self.calls += 1
        reaches = batch.num_computed_tokens_np + batch.num_scheduled_tokens >= batch.prefill_len_np
        rows = len(logits)
        logprobs = touch("LogprobsTensors")(
            torch.full((rows, 2), 99), torch.full((rows, 2), -0.5), torch.full((rows,), 3)
        )
        return SimpleNamespace(
            sampled_token_ids=torch.full((batch.num_reqs, 1), 99),
            num_sampled=torch.tensor(reaches.astype(np.int32)),
            num_rejected=torch.zeros(batch.num_reqs, dtype=torch.int32),
            logprobs_tensors=logprobs,
        )


@dataclass
class Runner:
    """Requests in the order of the batch: prompt, drawn tokens, how many are computed now, drafts."""

    specs: list[RowSpec | None]
    known: list[int]
    computed: list[int]
    drafts: list[list[int]]
    outputs: list[list[int]] = field(default_factory=list[list[int]])

    def __post_init__(self) -> None:
        self.table, self.slots, self.inner = Table(), Slots(8), Inner()
        self.sampler = SlotSampler(self.inner, self.table, self.slots)
        order = [5, 2, 7, 0][: len(self.specs)]
        for slot, spec in zip(order, self.specs, strict=True):
            output: list[int] = []
            self.outputs.append(output)
            self.slots.add(f"r{slot}", slot, spec and Row(spec, (1,) * 4, output), output)
        self.slots.arrange(order)

    def step(self, drawn: list[int], others: tuple[int, ...] = ()) -> Any:
        self.table.step = DrawnStep(torch.tensor(drawn)[:, None], torch.zeros(len(drawn), 1), others)
        return self.sampler(torch.zeros(len(drawn), 4), self.batch())

    def batch(self) -> Any:
        read = [token for drafts in self.drafts for token in (0, *drafts)]
        return SimpleNamespace(
            num_reqs=len(self.specs),
            num_draft_tokens=sum(map(len, self.drafts)),
            cu_num_logits_np=np.cumsum([0, *(1 + len(drafts) for drafts in self.drafts)]),
            num_computed_tokens_np=np.array([0] * len(self.specs)),
            num_scheduled_tokens=np.array(self.computed),
            prefill_len_np=np.array(self.known),
            input_ids=torch.tensor([0, *read]),
            logits_indices=torch.arange(len(read)) + 1,
        )


def runner(*specs: RowSpec | None, computed: list[int] | None = None, drafts: list[list[int]] | None = None) -> Runner:
    size = len(specs)
    return Runner(list(specs), [4] * size, computed or [4] * size, drafts or [[] for _ in specs])


def linked(group: str, view: int, size: int = 2) -> RowSpec:
    return RowSpec(single("a"), draw=DRAWN, link=Link(group, view, size, tuple(range(size))))


OWN = RowSpec(single("a"), draw=DRAWN)


def test_what_the_composer_drew_is_handed_over_and_noted() -> None:
    ours = runner(OWN, OWN)
    output = ours.step([7, 8])
    assert output.sampled_token_ids.tolist() == [[7], [8]]
    assert (output.num_sampled.tolist(), output.num_rejected.tolist()) == ([1, 1], [0, 0])
    assert ours.outputs == [[7], [8]]
    assert ours.inner.calls == 0, "vLLM draws nothing"
    assert ours.sampler.temperature == 0.5, "what else the runner asks of its sampler is vLLM's"


def test_a_prompt_that_is_still_read_gets_nothing() -> None:
    ours = runner(OWN, OWN, computed=[3, 4])
    output = ours.step([7, 8])
    assert (output.num_sampled.tolist(), output.num_rejected.tolist()) == ([0, 1], [0, 0])
    assert ours.outputs == [[], [8]]


def test_requests_of_vllm_are_drawn_by_vllm() -> None:
    """One that names no composition, and one that leaves its drawing to vLLM, whose tokens its rules must know."""
    ours = runner(None, OWN, RowSpec(single("a")))
    output = ours.step([7, 8, 9], others=(0, 2))
    assert output.sampled_token_ids.tolist() == [[99], [8], [99]]
    assert output.logprobs_tensors.logprob_token_ids[:, 0].tolist() == [99, 8, 99]
    assert output.logprobs_tensors.logprobs[:, 0].tolist() == [-0.5, 0.0, -0.5]
    assert output.logprobs_tensors.selected_token_ranks.tolist() == [3, 0, 3]
    assert ours.outputs[1:] == [[8], [99]]
    assert ours.inner.calls == 1


def test_without_compositions_vllm_is_undisturbed() -> None:
    ours = runner(None, None)
    output = ours.sampler(torch.zeros(2, 4), ours.batch())
    assert output.sampled_token_ids.tolist() == [[99], [99]]


def test_linked_requests_get_all_or_none() -> None:
    first, second = linked("g", 0), linked("g", 1)
    assert runner(first, OWN, second).step([7, 8, 7]).num_sampled.tolist() == [1, 1, 1]
    behind = runner(first, OWN, second, computed=[4, 4, 2])
    output = behind.step([7, 8, 9])
    assert output.num_sampled.tolist() == [0, 1, 0]
    assert output.num_rejected.tolist() == [1, 0, 0], "the one that came far enough computes its last token again"
    assert behind.outputs == [[], [8], []]
    alone = runner(first, OWN)
    assert alone.step([7, 8]).num_sampled.tolist() == [0, 1]
    unequal = runner(first, second)
    unequal.outputs[0].append(3)
    assert unequal.step([7, 7]).num_sampled.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(40))
def test_drafts_are_taken_as_far_as_they_were_drawn(seed: int) -> None:
    """Against the definition, request by request; the log-probs of what is taken stand where vLLM looks for them."""
    rng = random.Random(seed)
    drafts = [[rng.randint(1, 2) for _ in range(rng.randint(0, 3))] for _ in range(rng.randint(1, 4))]
    drawn = [rng.randint(1, 2) for row in drafts for _ in range(len(row) + 1)]
    ours = runner(*[OWN] * len(drafts), drafts=drafts)
    output = ours.step(drawn)
    start = 0
    for number, row in enumerate(drafts):
        mine = drawn[start : start + len(row) + 1]
        right = next((i for i, (a, b) in enumerate(zip(mine, row, strict=False)) if a != b), len(row))
        taken = mine[: right + 1]
        assert output.sampled_token_ids[number, : right + 1].tolist() == taken == ours.outputs[number]
        assert output.num_sampled[number] == right + 1
        assert output.num_rejected[number] == len(row) - right
        told = output.logprobs_tensors.tolists().slice_request(number, right + 1)
        assert told.logprob_token_ids[:, 0].tolist() == taken
        start += len(row) + 1


def test_linked_requests_keep_no_drafts() -> None:
    ours = runner(linked("g", 0), linked("g", 1), drafts=[[7, 8], [7]])
    output = ours.step([7, 8, 9, 7, 5])
    assert (output.num_sampled.tolist(), output.num_rejected.tolist()) == ([1, 1], [2, 1])
    assert ours.outputs == [[7], [7]]


def test_a_slot_is_somebody_elses_after_its_request() -> None:
    slots = Slots(2)
    slots.add("a", 1, Row(OWN, (1,), []), [])
    slots.arrange([1])
    assert slots.row(0) is not None
    assert slots.row(1) is None, "a padded row"
    slots.remove("a")
    slots.remove("never there")
    assert slots.row(0) is None
