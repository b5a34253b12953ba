"""Membership inference by Min-K%, and MUSE's PrivLeak (Shi et al. 2024, arXiv:2310.16789 and 2407.06460)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from motet.evaluation.measures.probability import FLOOR


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
