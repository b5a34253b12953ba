"""TOFU's truth ratio, and what is made of it (Maini et al. 2024, arXiv:2401.06121).

    r = mean over wrong answers of P(wrong | q)^(1/length) / P(paraphrase of the right one | q)^(1/length)

The paper's mean is arithmetic. TOFU's repository averages the losses of the wrong answers before it takes the
exponential, which is the geometric mean; its two variables are named as if it were 1/r, and it inverts where needed.
By Jensen's inequality the arithmetic r is never below the geometric one. Both are here; the Kolmogorov–Smirnov test
is the same for r and 1/r, but not for the two means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from motet.evaluation.measures.matching import mean
from motet.evaluation.measures.probability import mean_logprob

Average = Literal["arithmetic", "geometric"]


def truth_ratio(right: Sequence[float], wrong: Sequence[Sequence[float]], average: Average = "arithmetic") -> float:
    """`r` of one question from the token log-probs of the paraphrased right answer and of each wrong one (nats).

    Raises:
        ValueError: there is no wrong answer.
    """
    if not wrong:
        raise ValueError("a truth ratio needs wrong answers")
    ratios = [mean_logprob(logprobs) - mean_logprob(right) for logprobs in wrong]
    if average == "geometric":
        return math.exp(sum(ratios) / len(ratios))
    return sum(map(math.exp, ratios)) / len(ratios)


def forget_score(ratios: Sequence[float]) -> float | None:
    """mean(min(r, 1/r)): 1 where wrong and right answers are equally likely, 0 where either is certain."""
    return mean([min(r, 1 / r) for r in ratios])


def knowledge_score(ratios: Sequence[float]) -> float | None:
    """mean(max(0, 1 − r)): 1 where the right answer is certain."""
    return mean([max(0.0, 1 - r) for r in ratios])
