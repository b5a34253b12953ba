"""The strength α that a row solves for: the one that moves a distribution as far as is wanted.

With `p_α = softmax(L_0 + α·Δ)`, `F(α) = KL(p_α‖p_0) = α·E_α[Δ] − lse_α` and `B(α) = KL(p_0‖p_α) = lse_α − α·E_0[Δ]`
both grow with α: `F′ = α·Var_α[Δ]` and `B′ = E_α[Δ] − E_0[Δ]`. Arguments are (n, V) float64, parameters (n,) float64:
divergences of 1e-5 are differences of numbers near 1, of which float32 would leave two digits. Δ is centred under the
base, E_0[Δ] = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

EVALUATIONS = 24  # of one divergence, at most: Newton's steps on √KL converge in about four
CLOSE = 1e-5  # of a strength: a step so short leaves an error of its square
PASSES = (8, 32, 8, 8)  # strengths that `match_both` looks at in each of its passes
POINTS = 16  # places between two strengths at which the objective is estimated


class Divergences(NamedTuple):
    """KL(p_α‖p_0) and KL(p_0‖p_α) in nats, and their derivatives by α; all of one shape."""

    forward: Tensor
    backward: Tensor
    forward_slope: Tensor
    backward_slope: Tensor


def centred(base: Tensor, delta: Tensor) -> Tensor:
    """`delta` without its mean under `base` (log-probs)."""
    return delta - (base.exp() * delta).sum(-1, keepdim=True)


def divergences(base: Tensor, delta: Tensor, alpha: Tensor) -> Divergences:
    """Of the distributions `softmax(base + alpha·delta)` from `base` (log-probs), each (n,). `delta` is centred."""
    z = torch.mul(alpha[:, None], delta).add_(base)
    top = z.amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    mass = z.sub_(top).exp_().sum(-1)
    first, second = z.mul_(delta).sum(-1), z.mul_(delta).sum(-1)  # in place: a row is a megabyte and more
    mass = mass.masked_fill(mass == 0, 1.0)  # no token is possible: the row has no divergence
    lse, mean = top.squeeze(-1) + mass.log(), first / mass
    variance = (second / mass - mean.square()).clamp_min(0)
    return Divergences((alpha * mean - lse).clamp_min(0), lse.clamp_min(0), alpha * variance, mean)


def match_divergence(base: Tensor, delta: Tensor, alpha_max: Tensor, target: Tensor) -> Tensor:
    """The α in [0, `alpha_max`] with `KL(p_α‖p_0) = target`, `alpha_max` where the shift does not move as far.

    Newton's steps on √KL, which is nearly linear in α, from where it would be reached if KL were ½ α² Var_0[Δ]; halves
    of the interval where a step would leave it. Rows are frozen once they have converged: what else is in the batch
    changes nothing.
    """
    eps = torch.finfo(base.dtype).eps
    variance = (base.exp() * delta.square()).sum(-1)
    guess = torch.where(target > 0, (2 * target / variance).sqrt(), 0.0).minimum(alpha_max)
    alpha, low, high = guess, torch.zeros_like(guess), torch.full_like(guess, math.inf)
    done, missing = torch.zeros_like(guess, dtype=torch.bool), target
    for _ in range(EVALUATIONS):
        moved = divergences(base, delta, guess)
        missing = target - moved.forward
        below = missing > 0
        low, high = torch.where(below, guess, low), torch.where(below, high, guess)
        root = moved.forward.sqrt()
        step = 2 * root * (target.sqrt() - root) / moved.forward_slope
        after = (guess + step).minimum(alpha_max)
        close = step.abs() <= CLOSE * guess
        after = torch.where((after > low) & (after < high) | close, after, ((low + high) / 2).minimum(alpha_max))
        ended = (missing.abs() <= 8 * eps) | (below & (guess >= alpha_max)) | missing.isnan()
        alpha = torch.where(done, alpha, torch.where(ended, guess, after))
        done, guess = done | ended | close, alpha
        if bool(done.all()):
            break
    return torch.where(missing.isnan(), math.nan, alpha)


def match_both(base: Tensor, delta: Tensor, alpha_max: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """The α in [0, `alpha_max`] of the least `J = (F − forward)² + (B − backward)²`; of equals the smallest.

    J may have several minima and be flat at 0. Since F and B grow with α, the ends of an interval bound J inside of it
    from below: the first pass leaves the intervals that can hold the minimum. In the following ones F and B are
    interpolated between strengths by cubics that keep them growing, and the interval of the least estimate is searched
    more finely.
    """
    low, high = torch.zeros_like(alpha_max), alpha_max
    broken, guess = forward.isnan() | backward.isnan(), low
    for number, count in enumerate(PASSES):
        steps = torch.arange(count, dtype=low.dtype, device=low.device) / (count - 1)
        alpha = low[:, None] + (high - low)[:, None] * steps
        found = [divergences(base, delta, alpha[:, i]) for i in range(count)]
        moved = Divergences(*(torch.stack(parts, -1) for parts in zip(*found, strict=True)))
        broken = broken | moved.backward.isnan().any(-1)
        if number == 0:
            low, high = _hull(alpha, moved, forward[:, None], backward[:, None])
        else:
            low, high, guess = _narrowed(alpha, moved, forward[:, None], backward[:, None])
    return torch.where(broken, math.nan, guess)


def _objective(moved: Divergences, forward: Tensor, backward: Tensor) -> Tensor:
    return (moved.forward - forward).square() + (moved.backward - backward).square()


def _hull(alpha: Tensor, moved: Divergences, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of the intervals between α (n, C) that may hold the minimum."""
    best = _objective(moved, forward, backward).amin(-1, keepdim=True)
    least = torch.zeros_like(alpha[:, 1:])
    for values, target in ((moved.forward, forward), (moved.backward, backward)):
        least = least + torch.maximum(values[:, :-1] - target, target - values[:, 1:]).clamp_min(0).square()
    may = (least <= best).to(torch.int8)
    first = may.argmax(-1, keepdim=True)
    last = may.shape[1] - may.flip(-1).argmax(-1, keepdim=True)
    return alpha.gather(-1, first).squeeze(-1), alpha.gather(-1, last).squeeze(-1)


def _narrowed(alpha: Tensor, moved: Divergences, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of α (n, C), and where J is least: at the root of its slope by a secant where that changes its sign
    in the interval of the least estimate, else where the estimate is least. The intervals beside it are kept, since an
    estimate near the end of one may be off by more than that end is away."""
    width = alpha[:, 1:] - alpha[:, :-1]
    estimates = _objective(
        Divergences(
            _between(moved.forward, moved.forward_slope, width),
            _between(moved.backward, moved.backward_slope, width),
            moved.forward_slope,
            moved.backward_slope,
        ),
        forward[..., None],
        backward[..., None],
    )
    place = estimates.flatten(1).argmin(-1, keepdim=True)
    cell, point = place // (POINTS + 1), place % (POINTS + 1)
    slope = (moved.forward - forward) * moved.forward_slope + (moved.backward - backward) * moved.backward_slope
    low, high, f_low, f_high = (values.gather(-1, at) for values in (alpha, slope) for at in (cell, cell + 1))
    secant = low - f_low * (high - low) / (f_high - f_low)
    guess = torch.where((f_low < 0) & (f_high > 0), secant, low + (high - low) * point / POINTS)
    left = alpha.gather(-1, (cell - 1).clamp_min(0)).squeeze(-1)
    right = alpha.gather(-1, (cell + 2).clamp_max(alpha.shape[1] - 1)).squeeze(-1)
    return left, right, guess.squeeze(-1)


def _between(values: Tensor, slopes: Tensor, width: Tensor) -> Tensor:
    """(n, C − 1, POINTS + 1) growing values between (n, C) given ones: Hermite's cubics, their slopes limited as by
    Fritsch and Carlson (1980)."""
    low, high = values[:, :-1, None], values[:, 1:, None]
    most = 3 * (high - low)
    start, end = (torch.minimum(part[..., None] * width[..., None], most) for part in (slopes[:, :-1], slopes[:, 1:]))
    t = torch.arange(POINTS + 1, dtype=values.dtype, device=values.device) / POINTS
    rise = t * t * (3 - 2 * t)
    return low + (high - low) * rise + start * t * (1 - t) ** 2 - end * t * t * (1 - t)
