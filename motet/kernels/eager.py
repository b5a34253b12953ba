"""The composition in plain torch from raw logits, without the textbook's passes: the CPU's path.

A weighted sum of whole distributions is the same from raw logits as from log-probs, up to a constant that the last
normalisation takes away, and so is every plausible set. Only gated terms and most rules of `cores` need their streams
normalised. Equal to `reference.composed`, which also recomputes the rare rows whose sum is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from motet.kernels.cores import rule_scores
from motet.kernels.decode import Decoded, DecodeRows
from motet.kernels.layout import ComposeRows, Index, Kind, RuleRows, SetRows, SparseEdits, TermRows, blocks
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed, composed, outside_set
from motet.kernels.sampling import SampleRows, sample


class EagerKernels:
    """Plain torch on any device (see `decode.Kernels`)."""

    name = "eager"

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        return compose_logits(logits, plan, rules, state)

    def sample(self, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
        return sample(scores, params, uniform)

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, tokens = logprobs.topk(count)
        return values, tokens

    def fused(self, logits: Logits, rows: DecodeRows) -> Decoded | None:
        return None


def compose_logits(
    logits: Logits, plan: ComposeRows, rules: SparseEdits | None = None, state: Tensor | None = None
) -> Composed:
    """Composed log-probs (R, V) and α (R, P) from raw logits; arguments as for `reference.composed`."""
    z = torch.empty(plan.num_rows, logits.vocab, dtype=logits.dtype, device=logits.device)
    alpha = z.new_full((plan.num_rows, plan.pairs), math.nan)
    covers = bool(plan.terms) and plan.terms[0].rows == slice(0, plan.num_rows)
    if not covers:
        z.zero_()
    for number, term in enumerate(plan.terms):
        _add_term(z, logits, term, is_first=covers and number == 0)
    for rule in plan.rules:
        streams = _rule_streams(logits, rule)
        z[rule.rows], solved = rule_scores(rule, streams, None if state is None else state[rule.rows])
        if solved is not None:
            alpha[rule.rows, : solved.shape[1]] = solved.to(alpha.dtype)
    if rules is not None:
        z.index_put_((rules.rows, rules.tokens), rules.values, accumulate=True)
    for mask in plan.masks:
        _mask(z, mask.rows, logits, mask.keep)
    for block in blocks(plan.num_rows, logits.vocab):
        z[block] = z[block].log_softmax(-1)
    if math.isnan(float(z.amax())):
        broken = z.amax(-1).isnan()
        oracle = composed(logits.logprobs(), plan, rules, state)
        z[broken] = oracle.logprobs[broken]
    return Composed(z, alpha)


def _rule_streams(logits: Logits, rule: RuleRows) -> list[Tensor]:
    """(n, V) of each stream: raw where the rule solves for its strength, normalised elsewhere."""
    is_raw = rule.kind in (Kind.DYNAMIC, Kind.BUDGET)
    if rule.temperature is None:
        return [logits.scores(source) if is_raw else logits.logprobs(source) for source in rule.sources]
    streams = [rule.tempered(k, logits.scores(source)) for k, source in enumerate(rule.sources)]
    return streams if is_raw else [stream.log_softmax(-1) for stream in streams]


def _part(index: Index, block: slice) -> Index:
    if isinstance(index, slice):
        return slice(index.start + block.start, index.start + block.stop)
    return index[block]


def _add_term(z: Tensor, logits: Logits, term: TermRows, *, is_first: bool) -> None:
    """Product, then sum: fused they would round by where a row lies in the batch. The first term of all rows is
    written, not added (x and 0 + x are the same)."""
    for block in blocks(term.weight.shape[0], logits.vocab):
        scores = logits.scores(_part(term.source, block))
        weight = term.weight[block, None]
        if term.temperature is not None:
            scores = scores / term.temperature[block, None]
        rows = _part(term.rows, block)
        if term.inside is not None:
            outside = _outside(logits, term.inside, block)
            contribution = (scores.log_softmax(-1) * weight).masked_fill_(outside, 0.0)
        elif is_first:
            torch.mul(scores, weight, out=z[rows])
            continue
        else:
            contribution = scores * weight
        if is_first:
            z[rows] = contribution
        elif isinstance(rows, slice):
            z[rows] += contribution
        else:
            z.index_add_(0, rows, contribution)


def _outside(logits: Logits, keep: SetRows, block: slice) -> Tensor:
    source = _part(keep.source, block)
    scores = logits.logprobs(source) if keep.kind == "nucleus" else logits.scores(source)
    return outside_set(scores, keep.kind, keep.value)


def _mask(z: Tensor, rows: Index, logits: Logits, keep: SetRows) -> None:
    count = rows.stop - rows.start if isinstance(rows, slice) else rows.shape[0]
    for block in blocks(count, logits.vocab):
        part = _part(rows, block)
        outside = _outside(logits, keep, block)
        if isinstance(part, slice):
            z[part].masked_fill_(outside, -math.inf)
        else:
            z[part] = z[part].masked_fill_(outside, -math.inf)
