"""Early exits: what a model says behind one of its layers; imports nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bucket = Literal["low", "high"]
Select = Literal["divergence", "entropy"]

WHOLE = 40  # layers up to which a bucket is half of the model
REACH = 20  # layers of a bucket of deeper models


@dataclass(frozen=True, slots=True)
class Depth:
    """How many layers a model has, and whether its output head is its embeddings once more (`tied`)."""

    num_layers: int
    tied: bool = False

    def bucket(self, name: Bucket) -> tuple[int, ...]:
        """The candidates of a bucket (DoLa, Chuang et al. 2024): every second layer of the lower or of the upper half,
        at most 20 layers deep. Behind tied embeddings a model only repeats the token that it has read: the low bucket
        begins two layers later then."""
        half = self.num_layers // 2
        if name == "high":
            first = half if self.num_layers <= WHOLE else self.num_layers - REACH
            return tuple(range(first, self.num_layers, 2))
        first = min(2, self.num_layers - 1) if self.tied else 0
        return tuple(range(first, half if self.num_layers <= WHOLE else REACH, 2)) or (first,)


@dataclass(frozen=True, slots=True)
class Exit:
    """A stream that leaves the base's own forward early: its hidden state behind a layer, through the base's final norm
    and output head. It reads what the base reads, and computes nothing of its own before the norm.

    `layers` are the candidates: 0 is the embeddings, the number of layers the base itself; they are empty as long as
    nobody knows how deep the base is. `select` chooses one of them for every token, by the distributions at temperature
    1: that of the greatest Jensen–Shannon divergence from the base's, or of the greatest entropy; of equals the lowest.
    """

    layers: tuple[int, ...]
    select: Select = "divergence"
