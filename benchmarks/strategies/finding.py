"""What an experiment found: a strategy beside a baseline, with the interval of their difference and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Better = Literal["more", "less"]
Verdict = Literal["shown", "not shown", "miss", "not measured"]
Statistic = Callable[[NDArray[np.float64]], float]

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        claim: what the strategy is said to do, in a few words.
        measure: what was measured.
        wanted: whether more or less of it is claimed than of the baseline, or as much within a margin.
        against: what the baseline is.
        value: the strategy's figure.
        baseline: the baseline's.
        n: items of the strategy's side: questions, texts, tokens.
        low, high: the 95 % interval of `value − baseline`.
    """

    claim: str
    measure: str
    wanted: str
    against: str
    value: float | None
    baseline: float | None
    n: int
    low: float | None
    high: float | None
    verdict: Verdict

    @staticmethod
    def of(row: Mapping[str, Any]) -> Finding:
        """From what JSON kept of one."""
        return Finding(**row)


def mean(items: NDArray[np.float64]) -> float:
    return float(items.mean())


def ratio(items: NDArray[np.float64]) -> float:
    """(n, 2) of parts and wholes: all parts by all wholes; 0 where there is no whole."""
    parts, wholes = items.sum(0)
    return float(parts / wholes) if wholes else 0.0


def compared(
    claim: str,
    measure: str,
    against: str,
    ours: ArrayLike,
    theirs: ArrayLike,
    *,
    better: Better = "more",
    margin: float = 0.0,
    statistic: Statistic = mean,
    paired: bool = True,
) -> Finding:
    """A figure of both sides' items, and the bootstrap interval of their difference.

    Args:
        ours: (n, …) the strategy's figure of each item.
        theirs: (m, …) the baseline's; where `paired`, of the same items, which are then drawn together.
        better: what is claimed.
        margin: how much of the figure may be lost by a strategy that is said to keep it.
        statistic: makes one figure of drawn items.
    """
    mine, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    low, high = interval(mine, other, statistic, paired=paired)
    wanted = f"as much, within {margin:g}" if margin else better
    value, baseline = statistic(mine), statistic(other)
    found = verdict(low, high, better, margin)
    if margin and baseline <= margin and found == "shown":
        found = "not shown"  # there was nothing to lose
    return Finding(claim, measure, wanted, against, value, baseline, len(mine), low, high, found)


def interval(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], statistic: Statistic, *, paired: bool
) -> tuple[float, float]:
    """The percentile interval of `statistic(ours) − statistic(theirs)` over items drawn with replacement (Efron and
    Tibshirani 1993)."""
    if not len(ours) or not len(theirs) or (paired and len(ours) != len(theirs)):
        raise ValueError(f"items of both sides are expected, as many where they are paired: {len(ours)}, {len(theirs)}")
    rng = np.random.default_rng(0)
    differences: list[float] = []
    for _ in range(DRAWS):
        mine = rng.integers(len(ours), size=len(ours))
        other = mine if paired else rng.integers(len(theirs), size=len(theirs))
        differences.append(statistic(ours[mine]) - statistic(theirs[other]))
    low, high = np.quantile(differences, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)


def verdict(low: float, high: float, better: Better, margin: float = 0.0) -> Verdict:
    """`shown`: the whole interval lies on the claimed side of nothing lost but the margin; `miss`: all of it on the
    other side; `not shown`: on both."""
    worst, best = (low, high) if better == "more" else (-high, -low)
    if worst > -margin:
        return "shown"
    return "miss" if best < -margin else "not shown"


def proportions(share: float, n: int) -> NDArray[np.float64]:
    """The items of a share of `n` that is known alone: so many ones, the rest zeros."""
    hits = round(share * n)
    return np.concatenate([np.ones(hits), np.zeros(n - hits)])


def stacked(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """(n, k) items of several numbers each."""
    return np.asarray(rows, dtype=np.float64)
