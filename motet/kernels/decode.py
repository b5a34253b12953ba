"""What a step does with its logits: compose, restrict, penalise, draw, report. Generation, scoring and traces alike.

Two implementations of the heavy parts satisfy `Kernels`; which one runs is decided by `dispatch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from motet.kernels.layout import BitMask, ComposeRows, Index, SparseEdits, rows_index
from motet.kernels.logits import Logits
from motet.kernels.proposals import Proposal, settled
from motet.kernels.reference import Composed, kl_divergence, penalise, restrict, shift_rank
from motet.kernels.sampling import SampleRows

NO_END = -1


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The R rows of a step.

    `forced[r]` is the token that row r scores, −1 where one is drawn. `rules` belong to the composition; `banned`,
    `allowed` and `grammar` restrict what is drawn and reported; `bias`, `repetition` and `presence` only what is drawn
    (see `reference.penalise` for the order). `top[r]` alternatives of row r are reported (empty: none of any row), and
    of tokens that `named` gives for a row their log-probs, and for the rows in `trace` how far the composition has
    moved the base. `held`: rows whose composition's masks never give way to what the request allows, and the token that
    ends their answers (`NO_END`: there is none, and the row stays empty).
    Rows with one of the `proposals` take it or another token instead of a draw of their own.
    """

    plan: ComposeRows
    forced: Sequence[int]
    sampling: SampleRows
    uniform: Sequence[float]  # (R) in (0, 1]
    state: Tensor | None = None  # (R, 3), see `cores.rule_scores`
    rules: SparseEdits | None = None
    banned: SparseEdits | None = None
    allowed: Sequence[tuple[int, Tensor]] = ()
    grammar: BitMask | None = None
    bias: SparseEdits | None = None
    repetition: SparseEdits | None = None
    presence: SparseEdits | None = None
    top: Sequence[int] = ()
    named: Sequence[tuple[int, Tensor]] = ()
    trace: Sequence[int] = ()
    held: Mapping[int, int] = field(default_factory=dict[int, int])
    proposals: Sequence[Proposal] = ()

    @property
    def is_edited(self) -> bool:
        """Whether single tokens are changed by anything but masks that a kernel reads."""
        edits = (self.rules, self.banned, self.bias, self.repetition, self.presence)
        return bool(self.allowed) or any(edit is not None for edit in edits)

    @property
    def may_end(self) -> bool:
        """Whether a row may turn out to end its answer because nothing is left of it."""
        return bool(self.held) and self.is_restricted

    @property
    def is_restricted(self) -> bool:
        """Whether the request, not the composition, makes tokens impossible."""
        return bool(self.allowed) or self.banned is not None or self.grammar is not None

    @property
    def is_penalised(self) -> bool:
        """Whether tokens are drawn from other scores than the log-probs that are reported."""
        return any(edit is not None for edit in (self.bias, self.repetition, self.presence))

    def penalised(self, logprobs: Tensor) -> Tensor:
        """What is drawn from: (R, V)."""
        return penalise(logprobs, self.bias, self.repetition, self.presence) if self.is_penalised else logprobs

    def topped(self, vocab: int) -> tuple[list[int], int]:
        """The rows that report alternatives, and how many the greediest of them wants."""
        wanting = [r for r, count in enumerate(self.top) if count]
        return wanting, min(vocab, max((self.top[r] for r in wanting), default=0))


@dataclass(frozen=True, slots=True)
class Decoded:
    """`token` and `logprob` (R,) of what was forced or drawn, `alpha` (R, P) of P expert pairs (NaN where there is
    none).

    `top_values` and `top_tokens` (R, most alternatives of any row), best first; only the rows that asked are written.
    `named` are the log-probs of the tokens that rows name, by row. `kl` (R,) is KL(composed ‖ base) in nats,
    `base_rank` (R,) int64 the place of the token in the base's order (see `reference.shift_rank`); NaN and −1 in rows
    without a trace, None where there is no trace at all.
    """

    token: Tensor
    logprob: Tensor
    alpha: Tensor
    top_values: Tensor | None = None
    top_tokens: Tensor | None = None
    kl: Tensor | None = None
    base_rank: Tensor | None = None
    named: Mapping[int, Tensor] | None = None


class Kernels(Protocol):
    """The parts of a step that read the vocabulary."""

    name: str

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        """Composed log-probs (R, V), float32 (float64 for float64 logits), and α (R, P)."""
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
    """One step over R rows.

    Raises:
        ValueError: a bit mask of another shape than the rows and the vocabulary have.
    """
    if rows.grammar is not None:
        rows.grammar.check(logits.vocab)
    fused = None if rows.named else kernels.fused(logits, rows)
    if fused is not None:
        return fused
    composed, alpha = compose_restricted(kernels, logits, rows)
    token = _tokens(kernels, composed, rows)
    logprob = composed.gather(-1, token[:, None]).squeeze(-1)
    top, moved = _top(kernels, composed, rows, logits.vocab), _moved(logits, composed, token, rows)
    return Decoded(token, logprob, alpha, *top, *moved, named={row: composed[row, ids] for row, ids in rows.named})


def compose_restricted(kernels: Kernels, logits: Logits, rows: DecodeRows) -> Composed:
    """Composed log-probs (R, V) after the masks of the requests, and α (R, P): what is drawn from and reported."""
    composed, alpha = kernels.compose(logits, rows.plan, rows.rules, rows.state)
    return Composed(_restricted(kernels, logits, rows, composed) if rows.is_restricted else composed, alpha)


def _top(kernels: Kernels, composed: Tensor, rows: DecodeRows, vocab: int) -> tuple[Tensor | None, Tensor | None]:
    """Alternatives (R, most): the rows that ask for none are not looked at."""
    wanting, most = rows.topped(vocab)
    if not wanting:
        return None, None
    if len(wanting) == composed.shape[0]:
        return kernels.top(composed, most)
    found, ids = kernels.top(composed[wanting], most)
    values = composed.new_full((composed.shape[0], most), math.nan)
    tokens = torch.full_like(values, -1, dtype=torch.int64)
    values[wanting], tokens[wanting] = found, ids
    return values, tokens


def _moved(logits: Logits, composed: Tensor, token: Tensor, rows: DecodeRows) -> tuple[Tensor | None, Tensor | None]:
    """KL from the base and the token's rank under it, of the rows in `trace`."""
    if not rows.trace:
        return None, None
    traced = list(rows.trace)
    base = logits.logprobs(_chosen(rows.plan.base, traced))
    kl, rank = torch.full_like(composed[:, 0], math.nan), torch.full_like(token, -1)
    kl[traced] = kl_divergence(composed[traced], base)
    rank[traced] = shift_rank(base, token[traced])
    return kl, rank


def _chosen(index: Index, places: Sequence[int]) -> Index:
    """The rows that `places` of an index name."""
    if isinstance(index, slice):
        return rows_index([index.start + place for place in places])
    return index[list(places)]


def _restricted(kernels: Kernels, logits: Logits, rows: DecodeRows, composed: Tensor) -> Tensor:
    """Plausibility gives way to what the request allows: a row that has lost everything is composed without masks.
    Where the masks hold only the end of the answer is left."""
    composed = restrict(composed, rows.banned, rows.allowed, rows.grammar)
    empty = (composed == -math.inf).all(-1)
    for row, end in rows.held.items():
        if bool(empty[row]):
            empty[row] = False
            if end != NO_END:
                composed[row, end] = 0.0
    if bool(empty.any()):
        bare = kernels.compose(logits, replace(rows.plan, masks=()), rows.rules, rows.state).logprobs
        composed[empty] = restrict(bare, rows.banned, rows.allowed, rows.grammar)[empty]
    return composed


def _tokens(kernels: Kernels, composed: Tensor, rows: DecodeRows) -> Tensor:
    """The forced tokens, and draws in the other rows."""
    drawn = [r for r, token in enumerate(rows.forced) if token < 0]
    tokens = torch.tensor(rows.forced, dtype=torch.int64, device=composed.device)
    if not drawn:
        return tokens
    scores = rows.penalised(composed)
    if len(drawn) == len(rows.forced):
        tokens = kernels.sample(scores, rows.sampling, rows.uniform)
    else:
        params = rows.sampling.select(drawn)
        tokens[drawn] = kernels.sample(scores[drawn], params, [rows.uniform[r] for r in drawn])
    if rows.proposals:
        tokens[[proposal.row for proposal in rows.proposals]] = torch.tensor(
            settled(scores, rows.sampling, rows.proposals), device=tokens.device
        )
    return tokens
