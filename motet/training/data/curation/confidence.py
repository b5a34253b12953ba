"""Filtering and correcting by a model's confidence, in the manner of CLEAR.

Chen and Mueller, "Automated Data Curation for Robust Language Model Fine-Tuning" (2024): a model rates how confident
it is that each answer of the dataset is good; answers of low confidence are removed (Auto-Filter), or replaced by
the model's own where it is confident that its own is better (Auto-Correct).

The paper takes the confidence from several sampled answers and from asking the model about its own judgement
(BSDetector). Small experts do not answer such questions, so that here it comes from likelihoods alone:

    c(y | x) = exp(1/T Σ_t log p(y_t | x, y_<t))        the geometric mean of the answer's token probabilities
    P(y' better than y) = c(y') / (c(y') + c(y))        Bradley and Terry's model with strengths c

A model's own greedy answer is likely under the model by its making, which the threshold on P must outweigh: the
default of 0.8 asks that its tokens be four times as probable as those of the answer that it replaces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from motet.training.data.curation.verdict import Verdict
from motet.training.data.files import RecordSource

Floats = NDArray[np.float64]


def confidences(totals: Floats, counts: Floats) -> Floats:
    """c(y | x) in (0, 1] from sums of log-probabilities (nats) and numbers of tokens, all (n,)."""
    return np.exp(totals / counts)


def preferences(own: Floats, given: Floats) -> Floats:
    """P(own answer better than the given one) from their confidences, all (n,)."""
    return own / (own + given)


def filter_by_confidence(sources: Sequence[RecordSource], confidence: Floats, threshold: float) -> list[Verdict]:
    """Removes rows whose confidence is below the threshold (0 to 1)."""
    return [
        Verdict(source, "removed", f"confidence below {threshold:g}", float(score))
        for source, score in zip(sources, confidence, strict=True)
        if score < threshold
    ]


def correct_by_confidence(sources: Sequence[RecordSource], preference: Floats, threshold: float) -> list[Verdict]:
    """Replaces the answers of rows whose preference for the model's own answer reaches the threshold (0.5 to 1)."""
    return [
        Verdict(source, "replaced", f"the model's own answer is better with P at least {threshold:g}", float(score))
        for source, score in zip(sources, preference, strict=True)
        if score >= threshold
    ]
