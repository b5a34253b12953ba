"""Scores of the rules that are no weighted sum, over the log-probs of a row's streams.

`L_0` is the base. Arguments are (n, V) normalised log-probs, parameters (n,); every function returns new (n, V)
unnormalised scores in the dtype of its input. −inf in a stream never becomes NaN or +inf; NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from motet.kernels.layout import TIE, Kind, Measure, RuleRows
from motet.kernels.nucleus import within_mass
from motet.kernels.strength import centred, divergences, match_both, match_divergence

STATE_WIDTH = 3  # columns of a rule's state, see `rule_scores`


def rule_scores(rule: RuleRows, streams: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores (n, V) of the rows of one rule, and α (n, P) where the rule chooses it.

    Args:
        rule: kind and parameters.
        streams: K times (n, V) log-probs.
        state: (n, 3). DISCRIMINATOR: Σ log p_1 and Σ log p_2 of the tokens so far, and their number. ROUTED: the
            gate's share d of the assistant, in [0, 1]. Unused places and kinds: 0.

    Raises:
        ValueError: the rule needs a state and there is none.
    """
    p = rule.param
    match rule.kind:
        case Kind.RELU:
            return relu_difference(streams[0], streams[1], p[:, 0]), None
        case Kind.MIXTURE:
            return mixture(streams, rule.weight), None
        case Kind.DISCRIMINATOR:
            base, wanted, unwanted = streams
            return discriminator(base, wanted, unwanted, _given(state, rule), p[:, 0], p[:, 1], p[:, 2]), None
        case Kind.ROUTED:
            return mixture(streams[:2], routed_weights(_given(state, rule)[:, 0], p[:, 0])), None
        case Kind.DYNAMIC:
            return dynamic(streams, rule.weight, p[:, 0], p[:, 1] > 0)
        case Kind.BUDGET:
            return budget(streams, rule.weight, p[:, 0], p[:, 1])
        case Kind.DIVERGENCE:
            return divergence(streams[0], streams[1], streams[2], p[:, 0]), None
        case Kind.CASCADE:
            share = confident(streams[1], p[:, 0], p[:, 1]) * p[:, 2]
            return mixture(streams[:2], torch.stack([1 - share, share], -1)), share[:, None]
        case Kind.SPARSE:
            composes = disagree(streams, rule.weight, p[:, 0])
            alone = torch.zeros_like(rule.weight).index_fill_(1, rule.weight.new_zeros(1, dtype=torch.int64), 1.0)
            weight = torch.where(composes[:, None] == 0, alone, rule.weight)
            return mixture(streams, weight), composes[:, None]
        case Kind.LINEAR:
            raise ValueError("linear rows are terms")


def _given(state: Tensor | None, rule: RuleRows) -> Tensor:
    if state is None:
        raise ValueError(f"rule {rule.kind.name.lower()} needs the state of its rows")
    return state


def relu_difference(base: Tensor, reinforced: Tensor, alpha: Tensor) -> Tensor:
    """`L_0 − α·relu(L_1 − L_0)`: what the reinforced model likes more than the base is taken away."""
    excess = (reinforced - base).clamp_min(0).mul_(alpha[:, None])
    return torch.where(base == -math.inf, base, base - excess)


def mixture(streams: Sequence[Tensor], weight: Tensor) -> Tensor:
    """`log Σ_k w_k p_k`, weights (n, K) ≥ 0. A stream of weight 0 is not looked at, be it NaN or −inf."""
    parts = [stream + weight[:, k, None].log() for k, stream in enumerate(streams)]
    scores: list[Tensor] = []
    for r, weights in enumerate(cast("list[list[float]]", weight.tolist())):
        heard = [part[r] for part, own in zip(parts, weights, strict=True) if own]
        # row by row: the last elements of a tensor are computed by other instructions, which round differently
        scores.append(reduce(torch.logaddexp, heard) if heard else torch.full_like(parts[0][r], -math.inf))
    return torch.stack(scores)


def routed_weights(gate: Tensor, threshold: Tensor) -> Tensor:
    """(n, 2) weights of base and assistant: 1 − d and d, or one of them alone where there is a threshold ≥ 0."""
    share = torch.where(threshold >= 0, (gate > threshold).to(gate.dtype), gate)
    return torch.stack([1 - share, share], -1)


def confidence(logprobs: Tensor, measure: Tensor) -> Tensor:
    """(n,) how sure distributions (n, V) are by their `Measure` (n,): a probability, a lead, or an entropy in nats."""
    found = logprobs.amax(-1).exp()
    if bool((measure == Measure.MARGIN).any()):
        most = logprobs.topk(min(2, logprobs.shape[-1])).values.exp()
        second = most[:, 1] if most.shape[1] == 2 else 0.0
        found = torch.where(measure == Measure.MARGIN, found - second, found)
    if bool((measure == Measure.ENTROPY).any()):
        surprise = (logprobs.exp() * logprobs).masked_fill(logprobs == -math.inf, 0.0)
        found = torch.where(measure == Measure.ENTROPY, -surprise.sum(-1), found)
    return found


def confident(logprobs: Tensor, measure: Tensor, threshold: Tensor) -> Tensor:
    """(n,) 1 where a distribution (n, V) is as sure as `threshold` (n,) asks by its `Measure` (n,), 0 where it is not,
    NaN where it is broken."""
    found = confidence(logprobs, measure)
    met = torch.where(measure == Measure.ENTROPY, found <= threshold, found >= threshold)
    return torch.where(found.isnan(), math.nan, met.to(logprobs.dtype))


def disagree(streams: Sequence[Tensor], weight: Tensor, agreement: Tensor) -> Tensor:
    """(n,) 1 where streams of weight (n, K) > 0 disagree about the most likely token of the first: it is not the most
    likely of all, and no more than `agreement` (n,) of their probability is its own. 0 where they agree, NaN where a
    stream is broken."""
    token = streams[0].argmax(-1, keepdim=True)
    given = torch.cat([stream.gather(-1, token) for stream in streams], -1)
    most = torch.stack([stream.amax(-1) for stream in streams], -1)
    mass = torch.where(weight > 0, weight * given.exp(), 0.0).sum(-1)
    agree = ((given >= most) | (weight == 0)).all(-1) | (mass > agreement * weight.sum(-1))
    return torch.where(mass.isnan(), math.nan, (~agree).to(weight.dtype))


def divergence(base: Tensor, without: Tensor, full: Tensor, count: Tensor) -> Tensor:
    """`L_0` without the `count` (n,) tokens of which `L_1 − L_2` is lowest and below 0, and without their ties.

    Differences within `TIE` are equal: what ties in the members' logits does not tie behind another normalisation."""
    most = min(int(count.max()), base.shape[-1])
    difference = (without - full).masked_fill(full == -math.inf, math.inf)
    if not most:
        return torch.where(difference.isnan(), math.nan, base)
    lowest = difference.topk(most, largest=False).values
    last = lowest.gather(-1, (count[:, None].long() - 1).clamp(0, most - 1))
    disfavoured = (difference <= last + TIE) & (difference < -TIE) & (count[:, None] > 0)
    return torch.where(difference.isnan(), math.nan, base.masked_fill(disfavoured, -math.inf))


def discriminator(
    base: Tensor, wanted: Tensor, unwanted: Tensor, state: Tensor, omega: Tensor, mass: Tensor, posterior: Tensor
) -> Tensor:
    """`L_0 + ω·log σ(s)`, `s[v] = (Σ_past log p_1 + L_1[v])/t − (Σ_past log p_2 + L_2[v])/t`, t counting v.

    Kept are the tokens of the highest σ(s) until their mass under softmax of this score reaches `mass` (at least
    one), and all with σ(s) ≥ `posterior`; the rest is −inf.
    """
    s = ((state[:, 0:1] + wanted) - (state[:, 1:2] + unwanted)) / (state[:, 2:3] + 1)
    score = base + omega[:, None] * torch.nn.functional.logsigmoid(s)
    impossible = _impossible((base, wanted), torch.ones_like(state[:, :2], dtype=torch.bool))
    if impossible is not None:
        s, score = (values.masked_fill(impossible, -math.inf) for values in (s, score))
    whole = torch.where(mass >= 1, math.inf, mass)[:, None]
    keep = within_mass(s, score.softmax(-1), whole) | (s >= posterior.logit()[:, None]) | score.isnan()
    return torch.where(keep, score, -math.inf)


def dynamic(streams: Sequence[Tensor], weight: Tensor, alpha_max: Tensor, symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """`L_0 + Σ_i w_i α_i Δ_i` over pairs i of experts, each α_i solved as if its pair were alone and unweighted: with
    `Δ = L_1 − L_2` the α in [0, `alpha_max`] for which `KL(p_α‖p_0) = KL(p_1‖p_2)`, `p_α = softmax(L_0 + α·Δ)`.

    The symmetric form minimises `(KL(p_α‖p_0) − KL(p_1‖p_2))² + (KL(p_0‖p_α) − KL(p_2‖p_1))²`. All divergences are
    over the tokens that the base and the pair find possible. α is `alpha_max` where the shift cannot move as far. A
    pair of weight 0 is solved for and counts nothing. Raw logits do as well as log-probs.
    """
    score, alphas = streams[0], list[Tensor]()
    unit = weight.new_tensor([1.0, 1.0, -1.0], dtype=torch.float64).expand(weight.shape[0], 3)
    for k in range(1, len(streams) - 1, 2):
        base, delta, impossible = _shift((streams[0], *streams[k : k + 2]), unit)
        alpha = _matched(base, delta, _restricted(streams[k + 1].double(), impossible), alpha_max.double(), symmetric)
        score = score + _times(delta * alpha[:, None], weight[:, k, None]).to(score.dtype)
        if impossible is not None:
            score = score.masked_fill((weight[:, k, None] != 0) & impossible, -math.inf)
        alphas.append(alpha)
    return score, torch.stack(alphas, -1)


def _matched(base: Tensor, delta: Tensor, antiexpert: Tensor, alpha_max: Tensor, symmetric: Tensor) -> Tensor:
    """α (n,) of one pair. The expert is the anti-expert moved by Δ once, so its divergences are those of α = 1."""
    target = divergences(antiexpert, centred(antiexpert, delta), torch.ones_like(alpha_max))
    alpha = match_divergence(base, delta, alpha_max, target.forward)
    if bool(symmetric.any()):
        chosen = symmetric.nonzero().squeeze(-1)
        rows = [values[chosen] for values in (base, delta, alpha_max, target.forward, target.backward)]
        alpha[chosen] = match_both(*rows)
    return alpha


def budget(streams: Sequence[Tensor], weight: Tensor, alpha_max: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """`L_0 + α·Δ`, `Δ = Σ_{k≥1} w_k L_k`, with the largest α ≤ `alpha_max` for which `KL(p_α‖p_0) ≤ ε`. Raw logits do
    as well as log-probs."""
    base, delta, _ = _shift(streams, weight.double())
    alpha = match_divergence(base, delta, alpha_max.double(), epsilon.double())
    return (base + alpha[:, None] * delta).to(streams[0].dtype), alpha[:, None]


def _shift(streams: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """In float64: the base (of weight 1) normalised over the possible tokens, and Δ (0 at the others); and which are
    impossible."""
    parts = [_times(stream.double(), weight[:, k, None]) for k, stream in enumerate(streams[1:], 1)]
    impossible = _impossible(streams, weight != 0)
    base = _restricted(streams[0].double(), impossible)
    delta = reduce(torch.add, parts) if parts else torch.zeros_like(base)  # a base alone, as a weight of 0 leaves it
    if impossible is None:
        return base, centred(base, delta), None  # large constants of raw logits are gone then
    delta = centred(base, delta.masked_fill(impossible, 0.0))
    return base, delta.masked_fill(impossible, 0.0), impossible


def _impossible(streams: Sequence[Tensor], read: Tensor) -> Tensor | None:
    """(n, V) what any of the streams that are `read` (n, K) finds impossible; None where that is nothing, as of most
    models: then nothing need be masked."""
    less = [k for k, stream in enumerate(streams) if not bool(stream.amin() > -math.inf)]
    found = [(streams[k] == -math.inf) & read[:, k, None] for k in less]
    return reduce(torch.logical_or, found) if found else None


def _times(values: Tensor, weight: Tensor) -> Tensor:
    """`weight · values`, and 0 where `weight` (n, 1) is, whatever the values (n, V) are."""
    product = values * weight
    return product if bool(weight.all()) else torch.where(weight == 0, 0.0, product)


def _restricted(logprobs: Tensor, impossible: Tensor | None) -> Tensor:
    if impossible is None:
        return logprobs.log_softmax(-1)
    return logprobs.masked_fill(impossible, -math.inf).log_softmax(-1).masked_fill(impossible, -math.inf)
