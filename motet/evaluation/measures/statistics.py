"""What is made of many values: means, two-sample tests, calibration, Pareto fronts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return sum(values) / len(values) if values else None


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile interval of the mean (Efron 1979): of `draws` samples of as many values, drawn with replacement,
    the middle `level` of the means lies inside. None of nothing; the same seed gives the same interval.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    import numpy as np

    if not 0 < level < 1:
        raise ValueError(f"an interval needs a level between 0 and 1, got {level}")
    if not values:
        return None
    drawn = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    means = np.asarray(values, dtype=np.float64)[drawn].mean(axis=1)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def harmonic_mean(values: Sequence[float]) -> float | None:
    """n / Σ 1/v, 0 where one value is 0; None of nothing. TOFU's model utility is that of {probability, ROUGE-L
    recall, truth ratio} × {retain, real authors, world facts}.

    Raises:
        ValueError: a value is negative.
    """
    if not values:
        return None
    if min(values) < 0:
        raise ValueError(f"a harmonic mean needs values that are not negative, got {min(values)}")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)


def two_sample_ks(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """(statistic, p-value) of the two-sided Kolmogorov–Smirnov test that both samples have one distribution.

    TOFU's forget quality is the p-value for the unlearned and the retain-only model's truth ratios on the forget set:
    above 0.05 they are not told apart. It falls with the number of items: only values of one size compare.

    Raises:
        ValueError: a sample is empty.
    """
    from scipy import stats

    if not a or not b:
        raise ValueError("both samples need values")
    with warnings.catch_warnings():
        # scipy says so when it takes the asymptotic p-value, as it does where ties make the exact one fail
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Any = cast(Any, stats).ks_2samp(list(a), list(b))
    return float(result.statistic), float(result.pvalue)


def expected_calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> float | None:
    """Guo et al. 2017 (arXiv:1706.04599): Σ over bins of confidence: share of items × |accuracy − mean confidence|;
    bins are (i/n, (i+1)/n], the first one holds 0 as well. None without items."""
    pairs = list(zip(confidences, right, strict=True))
    if not pairs:
        return None
    error = 0.0
    for i in range(bins):
        inside = [(c, hit) for c, hit in pairs if (i / bins < c or (i == 0 and c == 0)) and c <= (i + 1) / bins]
        error += abs(sum(hit for _, hit in inside) - sum(c for c, _ in inside)) / len(pairs)
    return error


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """For each point whether no other is at least as good everywhere and better somewhere; more is better."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)
