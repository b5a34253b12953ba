"""How sure a model is: of a token by its distribution, of a whole answer by its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Confidence = Literal["max_prob", "margin", "entropy"]
Aggregate = Literal["mean", "sum", "quantile", "first"]
LEAST = math.log(5e-324)  # of a probability that has rounded to 0


@dataclass(frozen=True, slots=True)
class Judge:
    """Whether an answer is sure, by the `measure` of each of its tokens, its end included.

    `mean`, `sum` and `quantile` are Chow-Average, Chow-Sum and Chow-Quantile of Language Model Cascades: Token-level
    uncertainty and beyond (Gupta et al. 2024, arXiv:2404.10136); `first` looks at the first token alone, as in
    Optimising Calls to Large Language Models with Uncertainty-Based Two-Tier Selection (Ramírez et al. 2024,
    arXiv:2405.02134). Largest probabilities are taken as logs and told as a probability again: their mean is the
    geometric one, their sum the product. `quantile` 0 is the least sure token, 1 the surest, between two tokens in a
    straight line. An answer is sure from `threshold` on, with `entropy` up to it.
    """

    measure: Confidence
    aggregate: Aggregate
    threshold: float
    quantile: float = 0.0

    def confidence(self, tokens: Sequence[float]) -> float:
        """Of an answer whose tokens' measures are these, one at least: a probability, a lead, or nats."""
        if self.measure != "max_prob":
            return self._of(tokens)
        return math.exp(self._of([max(LEAST, math.log(value)) if value > 0 else LEAST for value in tokens]))

    def _of(self, values: Sequence[float]) -> float:
        match self.aggregate:
            case "mean":
                return math.fsum(values) / len(values)
            case "sum":
                return math.fsum(values)
            case "first":
                return values[0]
            case "quantile":
                return _quantile(sorted(values, reverse=self.measure == "entropy"), self.quantile)

    def is_sure(self, confidence: float) -> bool:
        return confidence <= self.threshold if self.measure == "entropy" else confidence >= self.threshold

    def verdict(self, tokens: Sequence[float], *, finished: bool) -> bool | None:
        """Whether the answer is sure; None where tokens to come may still decide it, or none is there. Is asked after
        each token: one below the threshold of the least sure one decides at once."""
        if not tokens:
            return None
        if finished or self.aggregate == "first":
            return self.is_sure(self.confidence(tokens))
        is_lost = self.aggregate == "quantile" and self.quantile == 0 and not self.is_sure(tokens[-1])
        return False if is_lost else None


def _quantile(ascending: Sequence[float], share: float) -> float:
    """Of values from the least sure on."""
    place = share * (len(ascending) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (place - below) * (ascending[above] - ascending[below])
