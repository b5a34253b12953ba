"""CPU sampling against the oracle's distribution.

Frequency tests are chi-square tests at a false-alarm rate of 1e-6 each, with fixed seeds.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
import torch

from motet.kernels.reference import warp
from motet.kernels.sampling import SampleRows, sample
from tests.kernels.frequencies import FALSE_ALARM, chi_square_p, draws

CASES: list[tuple[float, int, float, float]] = [
    (1.0, 0, 1.0, 0.0),
    (0.7, 0, 1.0, 0.0),
    (1.3, 12, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.9, 20, 0.7, 0.05),
    (1.0, 0, 0.999, 0.0),
]


def params(rows: int, case: tuple[float, int, float, float]) -> SampleRows:
    temperature, top_k, top_p, min_p = case
    return SampleRows([temperature] * rows, [top_k] * rows, [top_p] * rows, [min_p] * rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("vocab", [40, 1500])
def test_frequencies(case: tuple[float, int, float, float], vocab: int) -> None:
    rows = 4000
    scores = 2 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab))
    scores[0, 7] = -math.inf
    tokens = sample(scores.expand(rows, -1), params(rows, case), draws(rows, 1))
    probs = warp(
        scores.double(),
        torch.tensor([case[0]], dtype=torch.float64),
        torch.tensor([case[1]]),
        torch.tensor([case[2]], dtype=torch.float64),
        torch.tensor([case[3]], dtype=torch.float64),
    )[0].numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    assert counts[7] == 0
    assert counts[probs == 0].sum() == 0, "a filtered token was drawn"
    assert chi_square_p(counts, probs) > FALSE_ALARM


def test_a_wrong_distribution_is_noticed() -> None:
    """The chi-square above can fail: temperature 1 against draws at 1.2."""
    scores = 2 * torch.randn(1, 40, generator=torch.Generator().manual_seed(40))
    tokens = sample(scores.expand(4000, -1), params(4000, (1.2, 0, 1.0, 0.0)), draws(4000, 1))
    probs = scores.double().softmax(-1)[0].numpy()
    assert chi_square_p(np.bincount(tokens.numpy(), minlength=40), probs) < FALSE_ALARM


def test_a_row_is_drawn_alike_alone_and_in_company() -> None:
    scores = torch.randn(len(CASES) + 1, 1500, generator=torch.Generator().manual_seed(3))
    cases = [*CASES, (0.0, 0, 1.0, 0.0)]
    columns = list(zip(*cases, strict=True))
    together = SampleRows(*[list(column) for column in columns])
    uniform = draws(len(cases), 5)
    tokens = cast("list[int]", sample(scores, together, uniform).tolist())
    alone = [int(sample(scores[i : i + 1], params(1, case), uniform[i : i + 1])) for i, case in enumerate(cases)]
    assert tokens == alone
    assert tokens[-1] == int(scores[-1].argmax())


def test_top_p_beyond_the_candidates_looks_at_everything() -> None:
    """A flat distribution over more tokens than the candidate list holds: the tail must be reachable."""
    vocab = 4000
    tokens = sample(torch.zeros(1, vocab).expand(2000, -1), params(2000, (1.0, 0, 0.9, 0.0)), draws(2000, 2))
    assert torch.bincount(tokens).count_nonzero() > 1200


def test_forbidden_tokens_are_never_drawn() -> None:
    """The forbidden tokens lie next to likely ones and at both ends; the draws at every edge between two tokens, at the
    numbers beside it, at the smallest that there are, and anywhere."""
    scores = torch.zeros(64)
    scores[[0, 5, 6, 63]] = -math.inf
    edges = [k / 60 for k in range(1, 61)]
    below, above = ([math.nextafter(edge, to) for edge in edges] for to in (0.0, 1.0))
    coarse = [edge - 2.0**-24 for edge in edges]
    uniform = [*edges, *below, *above[:-1], *coarse, 2.0**-53, 2.0**-24, *draws(50_000, 0)]
    rows = len(uniform)
    tokens = sample(scores.expand(rows, -1), params(rows, (1.0, 0, 1.0, 0.0)), uniform)
    assert set(cast("list[int]", tokens.unique().tolist())) == set(range(64)) - {0, 5, 6, 63}


@pytest.mark.parametrize("vocab", [7, 1024, 1500, 2048])
@pytest.mark.parametrize("warping", [(1.0, 0, 1.0, 0.0), (1.0, 3, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (0.0, 0, 1.0, 0.0)])
def test_a_row_without_a_possible_token_gets_any(vocab: int, warping: tuple[float, int, float, float]) -> None:
    """Whoever asked learns it from the log-prob; the row beside it is drawn as ever."""
    scores = torch.full((2, vocab), -math.inf)
    scores[1, 5] = 0.0
    tokens = cast("list[int]", sample(scores, params(2, warping), [0.5, 0.5]).tolist())
    assert 0 <= tokens[0] < vocab
    assert tokens[1] == 5
