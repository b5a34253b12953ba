"""Which early layer a row is contrasted with (see `composers.exits.Exit`). Plain torch on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from motet.kernels.layout import rows_index
from motet.kernels.logits import Logits
from motet.kernels.reference import kl_divergence


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One row's choice: `final` and `early` are rows of the step's logits, those of the base and of its candidates."""

    final: int
    early: Sequence[int]
    select: Literal["divergence", "entropy"]


def premature(logits: Logits, rows: Sequence[ExitRow]) -> list[int]:
    """Of each row the number of the candidate that is chosen, the first of equals; one that is not a number is chosen
    before all others, so that it shows. Row by row: what else is in the step changes nothing."""
    found: dict[int, Tensor] = {}
    for number, row in enumerate(rows):
        if len(row.early) > 1:
            early = logits.logprobs(rows_index(row.early, logits.device))
            if row.select == "entropy":
                scores = entropy(early)
            else:
                scores = jensen_shannon(logits.logprobs(slice(row.final, row.final + 1)), early)
            found[number] = scores.argmax()
    chosen = iter(cast("list[int]", torch.stack(list(found.values())).tolist()) if found else [])
    return [next(chosen) if number in found else 0 for number in range(len(rows))]


def jensen_shannon(final: Tensor, early: Tensor) -> Tensor:
    """JSD in nats, (C,), of a distribution (1, V) and C others (C, V), all log-probs: the mean of both divergences from
    their average. It is at most ln 2, whatever is impossible."""
    mean = torch.logaddexp(final, early) - math.log(2)
    return (kl_divergence(final, mean) + kl_divergence(early, mean)) / 2


def entropy(logprobs: Tensor) -> Tensor:
    """In nats, (n,), of log-probs (n, V)."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -math.inf, 0.0)).sum(-1)
