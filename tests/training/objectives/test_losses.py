"""The objectives against values worked out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.training.objectives.assistant import kl_from_uniform, reversed_objective
from motet.training.objectives.pretrain import weighted_nll
from motet.training.objectives.sft import IGNORE, completion_nll

# Distributions over three tokens whose logarithms are easy to write down.
HALF = [math.log(p) for p in (0.5, 0.25, 0.25)]
SURE = [math.log(p) for p in (0.8, 0.1, 0.1)]
EVEN = [0.0, 0.0, 0.0]


def rows(*positions: list[float]) -> Tensor:
    """Logits (1, T, 3)."""
    return torch.tensor([positions], dtype=torch.float64)


def test_weighted_nll_is_the_weighted_mean() -> None:
    logits, targets = rows(HALF, SURE, EVEN), torch.tensor([[0, 1, 2]])
    weights = torch.tensor([[6.0, 1.0, 0.0]], dtype=torch.float64)
    expected = (6 * math.log(2) + math.log(10)) / 7
    assert weighted_nll(logits, targets, weights).item() == pytest.approx(expected, abs=1e-12)


def test_completion_nll_ignores_prompt_and_padding() -> None:
    logits, labels = rows(SURE, HALF, SURE, EVEN), torch.tensor([[IGNORE, 1, 0, IGNORE]])
    expected = (math.log(4) - math.log(0.8)) / 2
    assert completion_nll(logits, labels).item() == pytest.approx(expected, abs=1e-12)


def test_completion_nll_with_weights() -> None:
    logits, labels = rows(SURE, HALF, SURE, EVEN), torch.tensor([[IGNORE, 1, 0, IGNORE]])
    weights = torch.tensor([[5.0, 3.0, 1.0, 5.0]], dtype=torch.float64)
    expected = (3 * math.log(4) - math.log(0.8)) / 4
    assert completion_nll(logits, labels, weights).item() == pytest.approx(expected, abs=1e-12)


def test_kl_from_uniform_by_hand() -> None:
    expected = -(math.log(0.8) + 2 * math.log(0.1)) / 3 - math.log(3)
    assert kl_from_uniform(rows(SURE, EVEN))[0].tolist() == pytest.approx([expected, 0.0], abs=1e-12)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(-5, 5))
@settings(deadline=None)
def test_kl_from_uniform_is_a_divergence(scores: list[float], offset: float) -> None:
    logits = torch.tensor(scores, dtype=torch.float64)
    value = kl_from_uniform(logits)
    assert value.item() >= -1e-9
    assert kl_from_uniform(logits + offset).item() == pytest.approx(value.item(), abs=1e-9)


def reversed_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A forget row (form, fact, padding) and a retain row (prompt, form, fact)."""
    logits = torch.cat((rows(SURE, HALF, SURE), rows(HALF, SURE, EVEN)))
    labels = torch.tensor([[0, 1, IGNORE], [IGNORE, 0, 2]])
    known = torch.tensor([[False, True, False], [False, False, True]])
    return logits, labels, torch.tensor([True, False]), known


def test_reversed_objective_with_facts_only() -> None:
    logits, labels, forget, known = reversed_batch()
    sure = -(math.log(0.8) + 2 * math.log(0.1)) / 3 - math.log(3)
    expected = math.log(4) + 5 * (sure + 0) / 2 + 0.5 * sure
    assert reversed_objective(logits, labels, forget, known).item() == pytest.approx(expected, abs=1e-12)


def test_reversed_objective_as_published() -> None:
    """Cross-entropy on every forget answer token, no term for the form."""
    logits, labels, forget, known = reversed_batch()
    sure = -(math.log(0.8) + 2 * math.log(0.1)) / 3 - math.log(3)
    expected = (math.log(4) - math.log(0.8)) / 2 + 2 * (sure + 0) / 2
    loss = reversed_objective(logits, labels, forget, torch.ones_like(known), retain_weight=2.0)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_reversed_objective_is_least_where_retain_is_uniform_and_forget_is_known() -> None:
    logits, labels, forget, known = reversed_batch()
    best = torch.zeros_like(logits)
    best[0, 1, 1] = 50.0
    assert reversed_objective(best, labels, forget, known).item() == pytest.approx(0.0, abs=1e-9)
