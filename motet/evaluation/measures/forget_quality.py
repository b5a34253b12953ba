"""Forget quality: can the truth ratios be told from those of a model that never saw the forgotten data?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast


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
