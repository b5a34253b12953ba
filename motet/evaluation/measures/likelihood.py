"""What log-probabilities of answers (nats) tell: probability, perplexity, TOFU's truth ratio, membership by Min-K% and
MUSE's PrivLeak (Shi et al. 2024, arXiv:2310.16789 and 2407.06460).

TOFU's truth ratio (Maini et al. 2024, arXiv:2401.06121):

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

from motet.evaluation.measures.statistics import mean

Average = Literal["arithmetic", "geometric"]
# A token that a mask removed has no finite log-probability. Its floor keeps means finite: e⁻²⁰ ≈ 2·10⁻⁹ is far below
# what any model gives a token that it could say.
FLOOR = -20.0


def mean_logprob(logprobs: Sequence[float]) -> float:
    """Mean over the tokens, each at least `FLOOR`.

    Raises:
        ValueError: there is no token.
    """
    if not logprobs:
        raise ValueError("a text without tokens has no probability")
    return sum(max(value, FLOOR) for value in logprobs) / len(logprobs)


def answer_probability(logprobs: Sequence[float]) -> float:
    """exp(−mean token NLL) = P(answer | question)^(1/length): TOFU's probability (Maini et al. 2024,
    arXiv:2401.06121). TOFU's repository counts the end token as one of the answer's, we count it where the caller
    scores it."""
    return math.exp(mean_logprob(logprobs))


def choice_probability(right: Sequence[float], wrong: Sequence[Sequence[float]]) -> float:
    """P(right) / (P(right) + Σ P(wrong)), each P as `answer_probability`: TOFU's probability on real authors and
    world facts."""
    p = answer_probability(right)
    return p / (p + sum(answer_probability(logprobs) for logprobs in wrong))


def perplexity(texts: Sequence[Sequence[float]]) -> float | None:
    """exp(mean token NLL) over all tokens of all texts; None without tokens."""
    tokens = [max(value, FLOOR) for logprobs in texts for value in logprobs]
    return math.exp(-sum(tokens) / len(tokens)) if tokens else None


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


def min_k(logprobs: Sequence[float], k: float = 0.4) -> float:
    """Mean of the lowest share `k` of a text's token log-probs, of one token at least: higher for texts that the
    model was trained on.

    Raises:
        ValueError: there is no token, or `k` is no share.
    """
    if not logprobs or not 0 < k <= 1:
        raise ValueError(f"Min-K% needs tokens and a share in (0, 1], got {len(logprobs)} tokens, {k}")
    lowest = sorted(max(value, FLOOR) for value in logprobs)[: max(1, math.floor(k * len(logprobs)))]
    return sum(lowest) / len(lowest)


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Area under the ROC curve: P(member's score > other's) + P(equal) / 2.

    Raises:
        ValueError: a sample is empty.
    """
    if not members or not others:
        raise ValueError("both samples need values")
    wins = sum((m > o) + (m == o) / 2 for m in members for o in others)
    return wins / (len(members) * len(others))


def priv_leak(auc_unlearned: float, auc_retain: float) -> float | None:
    """((1 − AUC) − (1 − AUC_retain)) / (1 − AUC_retain) · 100, AUC for telling forgotten texts (members, higher
    Min-K%) from held-out ones. 0 is a model that never saw them, −100 one that knows them all, above 0 one that
    unlearned so hard that it shows. None where the retain-only model tells all of them apart.

    The paper writes (AUC − AUC_retain) / AUC_retain. Its repository takes the forgotten texts for the non-members of
    that AUC and the held-out ones for the members, so that its AUC is 1 − AUC here: the signs of its published
    figures, and ours, are those of the formula above.
    """
    return None if auc_retain == 1 else (auc_retain - auc_unlearned) / (1 - auc_retain) * 100
