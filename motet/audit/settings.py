"""The settings of an audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PartnerReads = Literal["same", "plain", "none"]


class AuditError(Exception):
    """An audit that cannot be run. `problems`: everything that is wrong, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """How much is asked, and how.

    `weight` and `mask` are λ and α of contrastive generation. `partner_reads`: the prompt as the expert reads it, as
    plain text, or not at all. `rounds` and `lr` belong to the iterative form. `others`: how many
    other answers an answer is compared with to tell whether it belongs to its prompt. `refusals`: patterns beside the
    built-in ones.
    """

    samples: int = 16
    rounds: int = 4
    max_tokens: int = 48
    weight: float = 1.0
    mask: float | None = 0.1
    partner_reads: PartnerReads = "same"
    others: int = 3
    lr: float = 1e-4
    seed: int = 0
    refusals: tuple[str, ...] = ()
    rows: int = 16  # that are decoded at once
    shown: int = 20  # entries of every list in the report
