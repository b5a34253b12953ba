"""What a step does with its logits: compose, restrict, penalise, draw, report. Generation, scoring and traces alike.

Two implementations of the heavy parts satisfy `Kernels`; which one runs is decided by `dispatch`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from motet.kernels.layout import ComposeRows, SparseEdits
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed, penalise, restrict
from motet.kernels.sampling import SampleRows


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The R rows of a step.

    `forced[r]` is the token that row r scores, −1 where one is drawn. `rules` belong to the composition; `banned`,
    `allowed` restrict what is drawn and reported; `bias`, `repetition` and `presence` only what is drawn (see
    `reference.penalise` for the order). `top` alternatives per row are reported.
    """

    plan: ComposeRows
    forced: Sequence[int]
    sampling: SampleRows
    uniform: Sequence[float]  # (R) in (0, 1]
    state: Tensor | None = None  # (R, 3), see `cores.rule_scores`
    rules: SparseEdits | None = None
    banned: SparseEdits | None = None
    allowed: Sequence[tuple[int, Tensor]] = ()
    bias: SparseEdits | None = None
    repetition: SparseEdits | None = None
    presence: SparseEdits | None = None
    top: int = 0
    keep_logprobs: bool = False  # the whole rows are needed, for traces

    @property
    def is_edited(self) -> bool:
        """Whether single tokens are changed by anything but the composition's own masks."""
        edits = (self.rules, self.banned, self.bias, self.repetition, self.presence)
        return bool(self.allowed) or any(edit is not None for edit in edits)


@dataclass(frozen=True, slots=True)
class Decoded:
    """`token` and `logprob` (R,) of what was forced or drawn, `alpha` (R,) (NaN where the rule has none).

    `top_values` and `top_tokens` (R, top), best first. `logprobs` (R, V) where they were kept.
    """

    token: Tensor
    logprob: Tensor
    alpha: Tensor
    top_values: Tensor | None = None
    top_tokens: Tensor | None = None
    logprobs: Tensor | None = None


class Kernels(Protocol):
    """The parts of a step that read the vocabulary."""

    name: str

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        """Composed log-probs (R, V), float32 (float64 for float64 logits), and α (R,)."""
        ...

    def sample(self, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
        """One token per row of scores (R, V): (R,) int64."""
        ...

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Values and tokens (R, count) of the most likely, best first."""
        ...

    def fused(self, logits: Logits, rows: DecodeRows) -> Decoded | None:
        """All at once, without writing composed rows; None where this implementation or these rows need them."""
        ...


def decode(kernels: Kernels, logits: Logits, rows: DecodeRows) -> Decoded:
    """One step over R rows."""
    fused = kernels.fused(logits, rows)
    if fused is not None:
        return fused
    composed, alpha = kernels.compose(logits, rows.plan, rows.rules, rows.state)
    if rows.banned is not None or rows.allowed:
        composed = _restricted(kernels, logits, rows, composed)
    token = _tokens(kernels, composed, rows)
    logprob = composed.gather(-1, token[:, None]).squeeze(-1)
    values, tokens = kernels.top(composed, min(rows.top, logits.vocab)) if rows.top else (None, None)
    return Decoded(token, logprob, alpha, values, tokens, composed if rows.keep_logprobs else None)


def _restricted(kernels: Kernels, logits: Logits, rows: DecodeRows, composed: Tensor) -> Tensor:
    """Plausibility gives way to what the request allows: a row that has lost everything is composed without masks."""
    composed = restrict(composed, rows.banned, rows.allowed)
    empty = (composed == -math.inf).all(-1)
    if bool(empty.any()):
        bare = kernels.compose(logits, replace(rows.plan, masks=()), rows.rules, rows.state).logprobs
        composed[empty] = restrict(bare, rows.banned, rows.allowed)[empty]
    return composed


def _tokens(kernels: Kernels, composed: Tensor, rows: DecodeRows) -> Tensor:
    """The forced tokens, and draws in the other rows."""
    drawn = [r for r, token in enumerate(rows.forced) if token < 0]
    if len(drawn) == len(rows.forced):
        scores = penalise(composed, rows.bias, rows.repetition, rows.presence)
        return kernels.sample(scores, rows.sampling, rows.uniform)
    forced = torch.tensor(rows.forced, dtype=torch.int64, device=composed.device)
    if not drawn:
        return forced
    scores = penalise(composed, rows.bias, rows.repetition, rows.presence)
    params = rows.sampling.select(drawn)
    forced[drawn] = kernels.sample(scores[drawn], params, [rows.uniform[r] for r in drawn])
    return forced
