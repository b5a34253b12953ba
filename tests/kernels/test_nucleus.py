"""The tokens of a mass by heights of bins against the plain sort, on orders made to mislead bins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from motet.kernels import nucleus
from motet.kernels.nucleus import within_mass

ROWS, VOCAB = 6, 3001


def sorted_out(order: Tensor, probs: Tensor, mass: float) -> Tensor:
    best = order.argsort(dim=-1, descending=True, stable=True)
    counts = probs.gather(-1, best)
    kept = counts.cumsum(-1) - counts < mass
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter(-1, best, kept)


def some(order: Tensor, value: float, step: int) -> Tensor:
    order = order.clone()
    order[:, ::step] = value
    return order


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "usual": lambda x: 3 * x,
    "flat": lambda x: 1e-3 * x,
    "peaked": lambda x: 30 * x,
    "ties": lambda x: (2 * x).round(),
    "all equal": torch.zeros_like,
    "impossible tokens": lambda x: some(3 * x, -math.inf, 3),
    "padding": lambda x: some(3 * x, -1e4, 7),
    "one of all": lambda x: some(3 * x, 1e3, 3001),
    "raised": lambda x: x + 1e3,
}


@pytest.mark.parametrize("mass", [1e-9, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_tokens_of_a_mass_are_those_of_the_sort(shape: str, mass: float) -> None:
    x = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = SHAPES[shape](x)
    assert torch.equal(within_mass(order, order.softmax(-1), mass), sorted_out(order, order.softmax(-1), mass))
    other = x.flip(-1).softmax(-1)  # what tokens count need not fall with their order
    assert torch.equal(within_mass(order, other, mass), sorted_out(order, other, mass))


def test_every_row_has_a_mass_of_its_own_and_is_kept_as_it_is_alone() -> None:
    order = 2 * torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2))
    probs = order.softmax(-1)
    masses = [0.0, 0.1, 0.5, 0.9, 0.99, math.inf]
    kept = within_mass(order, probs, torch.tensor(masses)[:, None])
    for r, mass in enumerate(masses):
        assert torch.equal(kept[r : r + 1], within_mass(order[r : r + 1], probs[r : r + 1], mass))
    assert kept.sum(-1)[[0, -1]].tolist() == [1, VOCAB]


def test_a_row_that_is_not_a_number_keeps_all() -> None:
    order = torch.zeros(2, 5)
    order[0, 2] = math.nan
    assert within_mass(order, order.softmax(-1), 0.5).tolist() == [[True] * 5, [True, True, True, False, False]]


@pytest.mark.parametrize("shape", ["usual", "padding"])
def test_the_vocabulary_is_not_sorted(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a usual row a bin is, which is why this is worth its lines."""
    seen: list[int] = []
    whole = nucleus._best_of_bin  # pyright: ignore[reportPrivateUsage]

    def counting(rows: Tensor, *rest: Tensor) -> Tensor:
        seen.append(len(rows))
        return whole(rows, *rest)

    monkeypatch.setattr(nucleus, "_best_of_bin", counting)
    logprobs = SHAPES[shape](torch.randn(1, 150_000, generator=torch.Generator().manual_seed(3))).log_softmax(-1)
    within_mass(logprobs, logprobs.exp(), 0.9)
    assert seen[0] < 1500
