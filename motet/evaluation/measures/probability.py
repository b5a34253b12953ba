"""Probabilities of answers from the log-probabilities of their tokens (nats)."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
