"""The divergence from uniform, against values worked out by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.training.objectives.assistant import kl_from_uniform

# Distributions over three tokens whose logarithms are easy to write down.
SURE = [math.log(p) for p in (0.8, 0.1, 0.1)]
EVEN = [0.0, 0.0, 0.0]


def rows(*positions: list[float]) -> Tensor:
    """Logits (1, T, 3)."""
    return torch.tensor([positions], dtype=torch.float64)


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
