"""The composition formula as it is written down: the oracle of every faster path.

The weighted sum stands once more in each backend that must compute it, always tested against this module: `eager` (the
CPU), `triton.scores` (CUDA) and `composed_loss.weighted_sum` (losses). `composers.rows.reference_logprobs` applies this
module to one plan.

Shapes: V is the shared vocabulary, N the stream rows of a step (all streams of all requests), R the output rows
(one per token position of one choice). Every function follows the dtype of its input: float32 in the engine,
float64 where it serves as an oracle.

For output row r with streams k, `L_k` the normalised log-probs of stream k:

    z_r[v] = Σ_k w_rk · L_k[v] · [v ∈ inside_rk] + rules_r[v]   for v in every mask of r, −inf elsewhere
    composed_r = z_r − logsumexp(z_r)

Log-probs are composed, never raw logits, so that adding a constant to one member's logits changes nothing, masks
and gates included. Rows of other rules than the weighted sum take their z from `cores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from motet.kernels.cores import rule_scores
from motet.kernels.layout import BitMask, ComposeRows, Index, SetKind, SparseEdits
from motet.kernels.nucleus import within_mass


class Composed(NamedTuple):
    """`logprobs` (R, V); `alpha` (R, P), one per pair of experts, NaN where a row's rule does not solve for it."""

    logprobs: Tensor
    alpha: Tensor


def outside_set(logprobs: Tensor, kind: SetKind, value: float) -> Tensor:
    """Which tokens a distribution finds implausible: (n, V) bool from (n, V) log-probs; see `composers.plan.TokenSet`.
    NaN is never outside: a broken stream must show."""
    if kind == "nucleus":  # a rounded sum of 1 must not cut the tail of a filter that is off
        return ~within_mass(logprobs, logprobs.exp(), value if value < 1.0 else math.inf)
    threshold = logprobs.amax(-1, keepdim=True) + math.log(value)
    if kind == "rank_or_ratio":
        m = max(1, math.floor(value * logprobs.shape[-1] + 1e-9))  # 0.29 · 100 is 28.999… in floats
        threshold = torch.minimum(threshold, logprobs.topk(m, -1).values[:, -1:])
    return logprobs < threshold


def compose(
    logprobs: Tensor, plan: ComposeRows, rules: SparseEdits | None = None, state: Tensor | None = None
) -> Tensor:
    """`composed` without α: (R, V)."""
    return composed(logprobs, plan, rules, state).logprobs


def composed(
    logprobs: Tensor, plan: ComposeRows, rules: SparseEdits | None = None, state: Tensor | None = None
) -> Composed:
    """Composed log-probs, normalised: (R, V) from the members' (N, V) normalised log-probs.

    −inf in a member: a token that any stream with weight ≠ 0 (inside its gate) finds impossible is impossible, never
    NaN or +inf. A row without any token left keeps its base's arg-max. NaN in a member stays NaN in the rows that
    read it: the caller reports it.

    Args:
        logprobs: (N, V); rows are streams, each normalised.
        plan: which rows enter which output row.
        rules: values added to z before the masks.
        state: (R, 3), for rules that have one (see `cores.rule_scores`).
    """
    alpha = logprobs.new_full((plan.num_rows, plan.pairs), math.nan)
    z = _scores(logprobs, plan, state, alpha, guard=False)
    z = _apply(z, logprobs, plan, rules)
    total = z.logsumexp(-1, keepdim=True)
    if not bool(total.isfinite().all()):
        broken = ~total.isfinite().squeeze(-1)
        guarded = _apply(_scores(logprobs, plan, state, alpha, guard=True), logprobs, plan, rules)
        z[broken] = guarded[broken]
        _keep_base_argmax(z, logprobs, plan)
        total = z.logsumexp(-1, keepdim=True)
    return Composed(z - total if z.requires_grad else z.sub_(total), alpha)


def _scores(logprobs: Tensor, plan: ComposeRows, state: Tensor | None, alpha: Tensor, *, guard: bool) -> Tensor:
    """z before rules and masks: weighted sums, then the rows of other rules, whose α is written to `alpha`."""
    z = _sum_terms(logprobs, plan, guard=guard)
    for rule in plan.rules:
        streams = [logprobs[source] for source in rule.sources]
        if rule.temperature is not None:
            streams = [rule.tempered(k, stream).log_softmax(-1) for k, stream in enumerate(streams)]
        z[rule.rows], solved = rule_scores(rule, streams, None if state is None else state[rule.rows])
        if solved is not None:
            alpha[rule.rows, : solved.shape[1]] = solved.to(alpha.dtype)
    return z


def _sum_terms(logprobs: Tensor, plan: ComposeRows, *, guard: bool) -> Tensor:
    z = logprobs.new_zeros(plan.num_rows, logprobs.shape[-1])
    for term in plan.terms:
        source = logprobs[term.source]
        if term.temperature is not None:
            source = (source / term.temperature[:, None]).log_softmax(-1)
        contribution = source * term.weight[:, None]
        if guard:
            banned = (source == -math.inf) & (term.weight[:, None] != 0)
            contribution = contribution.masked_fill(source == -math.inf, 0.0).masked_fill(banned, -math.inf)
        if term.inside is not None:
            outside = outside_set(logprobs[term.inside.source], term.inside.kind, term.inside.value)
            contribution = contribution.masked_fill(outside, 0.0)
        _add_rows(z, term.rows, contribution)
    return z


def _add_rows(z: Tensor, rows: Index, values: Tensor) -> None:
    if isinstance(rows, slice):
        z[rows] += values
    else:
        z.index_add_(0, rows, values)


def _apply(z: Tensor, logprobs: Tensor, plan: ComposeRows, rules: SparseEdits | None) -> Tensor:
    """Rules, then masks; a mask is −inf whatever stood there, so that nothing can lift it again."""
    if rules is not None:
        z.index_put_((rules.rows, rules.tokens), rules.values, accumulate=True)
    for mask in plan.masks:
        outside = outside_set(logprobs[mask.keep.source], mask.keep.kind, mask.keep.value)
        z[mask.rows] = z[mask.rows].masked_fill(outside, -math.inf)
    return z


def _keep_base_argmax(z: Tensor, logprobs: Tensor, plan: ComposeRows) -> None:
    empty = (z == -math.inf).all(-1)
    best = logprobs[plan.base].argmax(-1)
    z[empty] = z[empty].scatter(-1, best[empty, None], 0.0)


def restrict(
    logprobs: Tensor,
    banned: SparseEdits | None,
    allowed: Sequence[tuple[int, Tensor]],
    grammar: BitMask | None = None,
) -> Tensor:
    """Masks of the request (allowed tokens, grammar, bad words, minimum length) and normalisation: (R, V).

    Args:
        logprobs: (R, V) composed; changed in place.
        banned: places that become −inf (values unused).
        allowed: (row, (m,) token ids): every other token of the row becomes −inf.
        grammar: bits of the tokens that some rows may take; the others become −inf.
    """
    if banned is None and not allowed and grammar is None:
        return logprobs
    for row, ids in allowed:
        kept = logprobs[row, ids]
        logprobs[row] = -math.inf
        logprobs[row, ids] = kept
    if grammar is not None:
        for place, row in enumerate(grammar.rows):
            logprobs[row].masked_fill_(~unpacked(grammar.words[place], logprobs.shape[-1]), -math.inf)
    if banned is not None:
        logprobs[banned.rows, banned.tokens] = -math.inf
    # a row that lost everything stays −inf: the caller reports it, no token is invented
    total = logprobs.logsumexp(-1, keepdim=True)
    return logprobs.sub_(total.masked_fill(total == -math.inf, 0.0))


def unpacked(words: Tensor, vocab: int) -> Tensor:
    """(V,) bool from (⌈V/32⌉,) int32 words: bit v mod 32 of word ⌊v/32⌋ is token v."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return (words[:, None] >> bits & 1).bool().flatten()[:vocab]


def penalise(
    logprobs: Tensor, bias: SparseEdits | None, repetition: SparseEdits | None, presence: SparseEdits | None = None
) -> Tensor:
    """Logit bias (added), the repetition penalty (multiplied), presence and frequency penalties (added): (R, V), new.

    The repetition penalty acts on log-probs, where its sign is defined: a constant added to a member changes nothing.
    """
    scores = logprobs.clone()
    if bias is not None:
        scores.index_put_((bias.rows, bias.tokens), bias.values, accumulate=True)
    if repetition is not None:
        old = scores[repetition.rows, repetition.tokens]
        factor = torch.where(old < 0, repetition.values, 1.0 / repetition.values)
        scores[repetition.rows, repetition.tokens] = old * factor
    if presence is not None:
        scores.index_put_((presence.rows, presence.tokens), presence.values, accumulate=True)
    return scores


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, (R,), from log-probs (R, V); tokens with p = 0 count nothing, also where p has underflown."""
    probs = p.exp()
    return (probs * (p - q).masked_fill(probs == 0, 0.0)).sum(-1)


def shift_rank(base: Tensor, token: Tensor) -> Tensor:
    """How many tokens the base (R, V) finds likelier than the chosen ones (R,): int64, 0 is unshifted (URIAL, Lin et
    al. 2023)."""
    return (base > base.gather(-1, token[:, None])).sum(-1)


def warp(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The distribution that is sampled: (R, V) probabilities, by a full sort (the oracle of `sampling.sample`).

    Args:
        scores: (R, V) unnormalised log scores.
        temperature: (R,) > 0.
        top_k: (R,) int64, 0 is off.
        top_p: (R,) in (0, 1], computed on what top-k leaves; 1 is off.
        min_p: (R,) in [0, 1], relative to the most likely token; 0 is off.
    """
    ordered, order = (scores / temperature[:, None]).sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    limit = torch.where(top_k > 0, top_k, scores.shape[-1])[:, None]
    probs = ordered.masked_fill(rank >= limit, -math.inf).softmax(-1)
    before = probs.cumsum(-1) - probs
    drop = ((before >= top_p[:, None]) & (top_p[:, None] < 1)) | (probs < min_p[:, None] * probs[:, :1])
    drop[:, 0] = False
    probs = probs.masked_fill(drop, 0.0)
    return torch.zeros_like(probs).scatter_(-1, order, probs / probs.sum(-1, keepdim=True))


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative mass reaches `uniform` · total: (R,) int64.

    `uniform` (R,) lies in (0, 1], so an index of probability 0 is never drawn, the first one included.
    """
    cumulative = probs.cumsum(-1)
    target = uniform[:, None].to(cumulative.dtype) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target).squeeze(-1).clamp_max_(probs.shape[-1] - 1)
