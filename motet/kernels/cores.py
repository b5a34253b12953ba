"""Scores of the rules that are no weighted sum, over the log-probs of a row's streams.

`L_0` is the base. Arguments are (n, V) normalised log-probs, parameters (n,); every function returns new (n, V)
unnormalised scores in the dtype of its input. −inf in a stream never becomes NaN or +inf; NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from motet.kernels.layout import Kind, RuleRows

EVALUATIONS = 24  # of the divergence, at most: Illinois steps on √KL converge in about eight
STATE_WIDTH = 3  # columns of a rule's state, see `rule_scores`


def rule_scores(rule: RuleRows, streams: Sequence[Tensor], state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores (n, V) of the rows of one rule, and α (n, P) where the rule solves for it.

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
    logs = weight.log()
    parts = [
        torch.where(logs[:, k, None] == -math.inf, -math.inf, stream + logs[:, k, None])
        for k, stream in enumerate(streams)
    ]
    score = parts[0]
    for part in parts[1:]:
        # row by row: the last elements of a tensor are computed by other instructions, which round differently
        score = torch.stack([torch.logaddexp(row, other) for row, other in zip(score, part, strict=True)])
    return score


def routed_weights(gate: Tensor, threshold: Tensor) -> Tensor:
    """(n, 2) weights of base and assistant: 1 − d and d, or one of them alone where there is a threshold ≥ 0."""
    share = torch.where(threshold >= 0, (gate > threshold).to(gate.dtype), gate)
    return torch.stack([1 - share, share], -1)


def discriminator(
    base: Tensor, wanted: Tensor, unwanted: Tensor, state: Tensor, omega: Tensor, mass: Tensor, posterior: Tensor
) -> Tensor:
    """`L_0 + ω·log σ(s)`, `s[v] = (Σ_past log p_1 + L_1[v])/t − (Σ_past log p_2 + L_2[v])/t`, t counting v.

    Kept are the tokens of the highest σ(s) until their mass under softmax of this score reaches `mass` (at least
    one), and all with σ(s) ≥ `posterior`; the rest is −inf.
    """
    s = discriminator_logit(wanted, unwanted, state)
    score = base + omega[:, None] * torch.nn.functional.logsigmoid(s)
    score = score.masked_fill((base == -math.inf) | (wanted == -math.inf), -math.inf)
    ranked, order = s.masked_fill(score == -math.inf, -math.inf).sort(dim=-1, descending=True, stable=True)
    probs = score.gather(-1, order).softmax(-1)
    keep = (probs.cumsum(-1) - probs < mass[:, None]) | (mass[:, None] >= 1) | (ranked >= posterior.logit()[:, None])
    keep[:, 0] = True
    keep = torch.zeros_like(keep).scatter_(-1, order, keep)
    return torch.where(keep | score.isnan(), score, -math.inf)


def discriminator_logit(wanted: Tensor, unwanted: Tensor, state: Tensor) -> Tensor:
    """s (n, V) of `discriminator`; a token that both classes find impossible gets −inf."""
    length = state[:, 2:3] + 1
    s = ((state[:, 0:1] + wanted) - (state[:, 1:2] + unwanted)) / length
    return s.masked_fill(wanted == -math.inf, -math.inf)


def dynamic(streams: Sequence[Tensor], weight: Tensor, alpha_max: Tensor, symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """`L_0 + Σ_i w_i α_i Δ_i` over pairs i of experts, each α_i solved as if its pair were alone and unweighted: with
    `Δ = L_1 − L_2` the α in [0, `alpha_max`] for which `KL(p_α‖p_0) = KL(p_1‖p_2)`, `p_α = softmax(L_0 + α·Δ)`.

    The symmetric form minimises `(KL(p_α‖p_0) − KL(p_1‖p_2))² + (KL(p_0‖p_α) − KL(p_2‖p_1))²`. All divergences are
    over the tokens that the base and the pair find possible. α is `alpha_max` where the shift cannot move as far. A
    pair of weight 0 is solved for and counts nothing.
    """
    score, alphas = streams[0], list[Tensor]()
    unit = torch.tensor([1.0, 1.0, -1.0], dtype=weight.dtype, device=weight.device).expand(weight.shape[0], 3)
    for k in range(1, len(streams) - 1, 2):
        base, delta, possible = _shift((streams[0], *streams[k : k + 2]), unit)
        first, second = (_restricted(stream, possible) for stream in streams[k : k + 2])
        forward, backward = _kl(first, second), _kl(second, first)
        alpha = solve_alpha(base, delta, alpha_max, forward, torch.where(symmetric, backward, math.nan))
        counts = weight[:, k, None] != 0
        score = score + torch.where(counts, (weight[:, k] * alpha)[:, None] * delta, 0.0)
        score = score.masked_fill(counts & ~possible, -math.inf)
        alphas.append(alpha)
    return score, torch.stack(alphas, -1)


def budget(streams: Sequence[Tensor], weight: Tensor, alpha_max: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """`L_0 + α·Δ`, `Δ = Σ_{k≥1} w_k L_k`, with the largest α ≤ `alpha_max` for which `KL(p_α‖p_0) ≤ ε`."""
    base, delta, _ = _shift(streams, weight)
    alpha = solve_alpha(base, delta, alpha_max, epsilon, torch.full_like(epsilon, math.nan))
    return base + alpha[:, None] * delta, alpha[:, None]


def _shift(streams: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Base normalised over the possible tokens, Δ centred under it (0 at the others), and which are possible."""
    possible = streams[0] != -math.inf
    delta = torch.zeros_like(streams[0])
    for k, stream in enumerate(streams[1:], 1):
        w = weight[:, k, None]
        possible = possible & ((stream != -math.inf) | (w == 0))
        delta += torch.where(w != 0, w * stream, 0.0)
    base = _restricted(streams[0], possible)
    delta = torch.where(possible, delta, 0.0)
    delta -= (base.exp() * delta).sum(-1, keepdim=True)
    return base, torch.where(possible, delta, 0.0), possible


def _restricted(logprobs: Tensor, possible: Tensor) -> Tensor:
    kept = logprobs.masked_fill(~possible, -math.inf)
    total = kept.logsumexp(-1, keepdim=True)
    return kept - total.masked_fill(total == -math.inf, 0.0)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q).masked_fill(p == -math.inf, 0.0)).sum(-1)


def solve_alpha(base: Tensor, delta: Tensor, alpha_max: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """α (n,) in [0, `alpha_max`] with `KL(p_α‖p_0) = forward`; where `backward` is no NaN, of the symmetric form.

    `KL(p_α‖p_0) = α·E_α[Δ] − lse_α` and grows with α (its derivative is α·Var_α[Δ] ≥ 0), so a bracket holds.
    Regula falsi with the Illinois weights, on √KL, which is nearly linear in α. Rows are frozen once they have
    converged: what else is in the batch changes nothing.

    Args:
        base: (n, V) log-probs.
        delta: (n, V), centred under the base.
    """
    tolerance = 8 * torch.finfo(base.dtype).eps
    low, high = torch.zeros_like(alpha_max), alpha_max.clone()
    f_low = _excess(base, delta, low, forward, backward)
    f_high = _excess(base, delta, high, forward, backward)
    alpha = torch.where(f_low >= 0, low, high)
    done = (f_high <= 0) | (f_low >= 0)
    side = torch.zeros_like(alpha)
    for _ in range(EVALUATIONS - 2):
        if bool(done.all()):
            break
        guess = (low * f_high - high * f_low) / (f_high - f_low)
        f = _excess(base, delta, guess, forward, backward)
        alpha = torch.where(done, alpha, guess)
        below = f < 0
        same = torch.where(below, side < 0, side > 0)
        f_high = torch.where(below, torch.where(same, f_high / 2, f_high), f)
        f_low = torch.where(below, f, torch.where(same, f_low / 2, f_low))
        low, high = torch.where(below, guess, low), torch.where(below, high, guess)
        side = torch.where(below, -1.0, 1.0).to(alpha.dtype)
        done = done | (f.abs() <= tolerance) | (high - low <= tolerance * high) | f.isnan()
    return torch.where(forward.isnan() | f_low.isnan(), math.nan, alpha)


def _excess(base: Tensor, delta: Tensor, alpha: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """A function of α (n,) whose sign is that of α − solution."""
    z = base + alpha[:, None] * delta
    lse = z.logsumexp(-1)
    lse = lse.masked_fill(lse == -math.inf, 0.0)  # no token is possible: the row has no divergence
    p = (z - lse[:, None]).exp()
    mean = (p * delta).sum(-1)
    moved = (alpha * mean - lse).clamp_min(0)
    plain = moved.sqrt() - forward.sqrt()
    if bool(backward.isnan().all()):
        return plain
    # half the derivative of the sum of squares, over α; E_0[Δ] = 0, and E_α[Δ] / α tends to Var at 0
    variance = (p * (delta - mean[:, None]).square()).sum(-1)
    slope = torch.where(alpha > 0, mean / alpha.clamp_min(torch.finfo(alpha.dtype).tiny), variance)
    both = (moved - forward) * variance + (lse - backward) * slope
    return torch.where(backward.isnan(), plain, both)
