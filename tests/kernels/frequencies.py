"""Draws, and how often they should give which token: chi-square tests at one false-alarm rate."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np

FALSE_ALARM = 1e-6


def draws(rows: int, seed: int) -> list[float]:
    """One draw in (0, 1] per row."""
    generator = random.Random(seed)
    return [1.0 - generator.random() for _ in range(rows)]


def chi_square_p(counts: np.ndarray[Any, Any], probs: np.ndarray[Any, Any]) -> float:
    """p-value after pooling cells that expect fewer than five draws."""
    from scipy import stats  # the tests' own library, which a machine with a GPU may lack

    expected = probs * counts.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    return float(
        cast("Any", stats).chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum())[1]
    )
