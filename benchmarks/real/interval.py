"""Figures with their error bars: what would come out with other questions of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval. `undefined`: share of the bootstrap's draws in which the figure has no value;
    they are left out of the interval."""

    value: float | None
    low: float | None
    high: float | None
    undefined: float = 0.0

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "undefined"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(hits: Sequence[bool]) -> Interval:
    """The share of hits, with Wilson's binomial interval. Raises ValueError of no hits and misses at all."""
    found: Any = cast(Any, stats).binomtest(sum(hits), len(hits))
    interval = found.proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.statistic), float(interval.low), float(interval.high))


def bootstrapped(
    figure: Callable[..., float | None], *columns: Sequence[bool], draws: int = DRAWS, seed: int = 0
) -> Interval:
    """A figure of the columns' means, with the percentile interval over questions drawn with replacement (Efron and
    Tibshirani 1993). The columns hold the same questions in the same order, and are drawn together: what makes a
    question hard for all systems does not widen the interval.

    Args:
        figure: of one mean per column; None where it has no value.
        columns: whether each question was answered rightly, one column per system.
    """
    table = np.array(columns, dtype=float)  # systems × questions
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError("columns of one length, with at least one question, are expected")
    chosen = np.random.default_rng(seed).integers(table.shape[1], size=(draws, table.shape[1]))
    values = [figure(*table[:, rows].mean(1).tolist()) for rows in chosen]
    defined = [value for value in values if value is not None]
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if defined else (None, None)
    return Interval(figure(*table.mean(1).tolist()), low, high, 1 - len(defined) / draws)
