# type: ignore
"""The strengths α that a row solves for: eight values per pass over the row, three passes, then one secant step.

`KL(p_α‖p_0) = α·E_α[Δ] − (lse_α − lse_0)` needs, for each α, the maximum, the mass and Σ e·Δ of `L_0 + αΔ`; it grows
with α, so the eight values bracket the solution and the next pass divides the bracket by seven. A pass reads what the
one before has summed over the whole row, so passes are launches. Raw logits do: constants of a member cancel.

A row of fused experts solves once per pair of them, each pair as if it were alone: the grids count
q = r · PAIRS + pair, and so do `part`, `target`, `base`, `bracket` and `solved`.
"""

import triton
import triton.language as tl

from motet.kernels.triton.load import load_logits, only_if
from motet.kernels.triton.scores import BUDGET, DYNAMIC

LANES = tl.constexpr(8)
FIELDS = tl.constexpr(4)  # per lane: maximum, Σ e, Σ e·Δ, Σ e·Δ²
PASSES = 3


@triton.jit
def _shift(buffers, stream, weight, rule, r, pair, offsets, V, K: tl.constexpr, DTYPE: tl.constexpr):
    """Base and Δ (raw), and which tokens all streams of Δ find possible: the pair's two, unweighted, or all that a
    budget is spent on."""
    dynamic = tl.load(rule + r * 8).to(tl.int32) == DYNAMIC
    valid = offsets < V
    base = load_logits(buffers, stream, r * K, offsets, valid, DTYPE)
    possible = valid & (base != -float("inf"))
    delta = tl.zeros(offsets.shape, tl.float32)
    for k in tl.static_range(1, K):
        unit = tl.where(k == 1 + 2 * pair, 1.0, tl.where(k == 2 + 2 * pair, -1.0, 0.0))
        w = tl.where(dynamic, unit, tl.load(weight + (r * K + k) * 2))
        x = load_logits(buffers, stream, r * K + k, offsets, only_if(w != 0, valid), DTYPE)
        possible = tl.where(w == 0, possible, possible & (x != -float("inf")))
        delta += tl.where(w == 0, 0.0, tl.where(x == -float("inf"), 0.0, w * x))
    return base, tl.where(possible, delta, 0.0), possible


@triton.jit
def _joined(part, q, SPLITS, WIDTH: tl.constexpr):
    """Per lane (8,): maximum, Σ e, Σ e·Δ, Σ e·Δ² over all splits, in a fixed order."""
    rows = tl.arange(0, WIDTH)[:, None]
    lanes = tl.arange(0, LANES)[None, :]
    place = part + ((q * SPLITS + rows) * LANES + lanes) * FIELDS
    mask = (rows < SPLITS) & (lanes < LANES)
    m = tl.load(place, mask, -float("inf"))
    top = tl.max(m, 0)
    scale = tl.exp(m - tl.where(top == -float("inf"), 0.0, top)[None, :])
    s = tl.sum(tl.load(place + 1, mask, 0.0) * scale, 0)
    first = tl.sum(tl.load(place + 2, mask, 0.0) * scale, 0)
    second = tl.sum(tl.load(place + 3, mask, 0.0) * scale, 0)
    return top, s, first, second


@triton.jit
def _targets(target, rule, r, q, SPLITS, WIDTH: tl.constexpr):
    """(forward, backward) divergences to match: KL(p_1‖p_2) and KL(p_2‖p_1), or ε; `target` (R · PAIRS, SPLITS, 6)."""
    lanes = tl.arange(0, WIDTH)
    mask = lanes < SPLITS
    place = target + (q * SPLITS + lanes) * 6
    m1 = tl.load(place, mask, -float("inf"))
    m2 = tl.load(place + 3, mask, -float("inf"))
    top1 = tl.max(m1, 0)
    top2 = tl.max(m2, 0)
    c1 = tl.exp(m1 - tl.where(top1 == -float("inf"), 0.0, top1))
    c2 = tl.exp(m2 - tl.where(top2 == -float("inf"), 0.0, top2))
    s1 = tl.sum(tl.load(place + 1, mask, 0.0) * c1, 0)
    s2 = tl.sum(tl.load(place + 4, mask, 0.0) * c2, 0)
    gap = (top1 + tl.log(s1)) - (top2 + tl.log(s2))
    forward = tl.sum(tl.load(place + 2, mask, 0.0) * c1, 0) / s1 - gap
    backward = gap - tl.sum(tl.load(place + 5, mask, 0.0) * c2, 0) / s2
    budgeted = tl.load(rule + r * 8).to(tl.int32) == BUDGET
    forward = tl.where(budgeted, tl.load(rule + r * 8 + 2), tl.maximum(forward, 0.0))
    return forward, tl.maximum(backward, 0.0)


@triton.jit
def _excess(part, target, rule, r, q, low, high, lse0, center, SPLITS, WIDTH: tl.constexpr):
    """α of the lanes, and a function of it (8,) whose sign is that of α − solution.

    `lse0`: log-sum-exp of the base over the possible tokens; `center`: E_0[Δ] of the Δ that was summed.
    """
    m, s, first, second = _joined(part, q, SPLITS, WIDTH)
    lanes = tl.arange(0, LANES)
    alpha = low + (high - low) * lanes.to(tl.float32) / 7.0
    mean = first / s
    grown = m + tl.log(s) - lse0
    forward, backward = _targets(target, rule, r, q, SPLITS, WIDTH)
    moved = tl.maximum(alpha * mean - grown, 0.0)
    plain = tl.sqrt(moved) - tl.sqrt(forward)
    variance = tl.maximum(second / s - mean * mean, 0.0)
    slope = tl.where(alpha > 0, (mean - center) / tl.maximum(alpha, 1e-30), variance)
    both = (moved - forward) * variance + (grown - alpha * center - backward) * slope
    symmetric = (tl.load(rule + r * 8).to(tl.int32) == DYNAMIC) & (tl.load(rule + r * 8 + 2) > 0)
    return alpha, tl.where(symmetric, both, plain)


@triton.jit
def _bracket(alpha, f):
    """(low, f(low), high, f(high)) among the lanes: the last negative value and its neighbour."""
    lanes = tl.arange(0, LANES)
    count = tl.sum((f < 0).to(tl.int32), 0)
    below = tl.minimum(tl.maximum(count - 1, 0), LANES - 2)
    low = tl.sum(tl.where(lanes == below, alpha, 0.0), 0)
    high = tl.sum(tl.where(lanes == below + 1, alpha, 0.0), 0)
    f_low = tl.sum(tl.where(lanes == below, f, 0.0), 0)
    f_high = tl.sum(tl.where(lanes == below + 1, f, 0.0), 0)
    return low, f_low, high, f_high


@triton.jit
def _solves(rule, r, pair):
    return pair < tl.load(rule + r * 8 + 7)


@triton.jit
def alpha_targets(
    buffers, stream, weight, target, rule, V, tiles, PAIRS, K: tl.constexpr, SPLITS, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R · PAIRS, SPLITS): sums of KL(p_1‖p_2) and KL(p_2‖p_1) over `tiles` blocks, into `target`
    (R · PAIRS, SPLITS, 6)."""
    q = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    r = q // PAIRS
    pair = q % PAIRS
    if _solves(rule, r, pair):
        m1 = -float("inf")
        m2 = -float("inf")
        s1 = 0.0
        s2 = 0.0
        d1 = 0.0
        d2 = 0.0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * BLOCK + tl.arange(0, BLOCK)
            _, _, possible = _shift(buffers, stream, weight, rule, r, pair, offsets, V, K, DTYPE)
            x = load_logits(buffers, stream, r * K + 2 * pair + 1, offsets, possible, DTYPE)
            y = x
            if K > 2:
                y = load_logits(buffers, stream, r * K + 2 * pair + 2, offsets, possible, DTYPE)
            gap = tl.where(possible & (x > -float("inf")) & (y > -float("inf")), x - y, 0.0)
            top1 = tl.maximum(m1, tl.max(x, 0))
            top2 = tl.maximum(m2, tl.max(y, 0))
            safe1 = tl.where(top1 == -float("inf"), 0.0, top1)
            safe2 = tl.where(top2 == -float("inf"), 0.0, top2)
            e1 = tl.exp(x - safe1)
            e2 = tl.exp(y - safe2)
            s1 = s1 * tl.exp(m1 - safe1) + tl.sum(e1, 0)
            d1 = d1 * tl.exp(m1 - safe1) + tl.sum(e1 * gap, 0)
            s2 = s2 * tl.exp(m2 - safe2) + tl.sum(e2, 0)
            d2 = d2 * tl.exp(m2 - safe2) + tl.sum(e2 * gap, 0)
            m1 = top1
            m2 = top2
        place = target + (q * SPLITS + split) * 6
        tl.store(place, m1)
        tl.store(place + 1, s1)
        tl.store(place + 2, d1)
        tl.store(place + 3, m2)
        tl.store(place + 4, s2)
        tl.store(place + 5, d2)


@triton.jit
def alpha_pass(
    buffers, stream, weight, rule, part, base, bracket, V, tiles, number, PAIRS, K: tl.constexpr, SPLITS,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R · PAIRS, SPLITS): sums at eight α of the bracket (R · PAIRS, 2) into `part` (R · PAIRS, SPLITS, 8, 4).
    Pass 0 takes the whole range [0, largest α] and Δ as it is, the others Δ centred under the base."""
    q = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    r = q // PAIRS
    pair = q % PAIRS
    if _solves(rule, r, pair):
        low = 0.0
        high = tl.load(rule + r * 8 + 1)
        center = 0.0
        if number > 0:
            low = tl.load(bracket + q * 2)
            high = tl.load(bracket + q * 2 + 1)
            center = tl.load(base + q * 2 + 1)
        lanes = tl.arange(0, LANES)
        alpha = low + (high - low) * lanes.to(tl.float32) / 7.0
        m = tl.full((LANES,), -float("inf"), tl.float32)
        s = tl.zeros((LANES,), tl.float32)
        first = tl.zeros((LANES,), tl.float32)
        second = tl.zeros((LANES,), tl.float32)
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * BLOCK + tl.arange(0, BLOCK)
            l0, delta, possible = _shift(buffers, stream, weight, rule, r, pair, offsets, V, K, DTYPE)
            delta = tl.where(possible, delta - center, 0.0)
            z = tl.where(possible, l0, -float("inf"))[None, :] + alpha[:, None] * delta[None, :]
            top = tl.maximum(m, tl.max(z, 1))
            safe = tl.where(top == -float("inf"), 0.0, top)
            scale = tl.exp(m - safe)
            e = tl.exp(z - safe[:, None])
            s = s * scale + tl.sum(e, 1)
            e = e * delta[None, :]
            first = first * scale + tl.sum(e, 1)
            second = second * scale + tl.sum(e * delta[None, :], 1)
            m = top
        place = part + ((q * SPLITS + split) * LANES + lanes) * FIELDS
        tl.store(place, m)
        tl.store(place + 1, s)
        tl.store(place + 2, first)
        tl.store(place + 3, second)


@triton.jit
def alpha_narrow(part, target, rule, base, bracket, solved, number, last, PAIRS, SPLITS, WIDTH: tl.constexpr):
    """Grid (R · PAIRS): the bracket of the next pass; after the last one, α into `solved`. Pass 0 also writes `base`
    (R · PAIRS, 2): the base's log-sum-exp and E_0[Δ]."""
    q = tl.program_id(0).to(tl.int64)
    r = q // PAIRS
    if _solves(rule, r, q % PAIRS):
        low = 0.0
        high = tl.load(rule + r * 8 + 1)
        center = 0.0
        if number > 0:
            low = tl.load(bracket + q * 2)
            high = tl.load(bracket + q * 2 + 1)
            lse0 = tl.load(base + q * 2)
        else:
            m, s, first, _ = _joined(part, q, SPLITS, WIDTH)
            is_base = tl.arange(0, LANES) == 0  # the first lane of pass 0 is α = 0
            lse0 = tl.sum(tl.where(is_base, m + tl.log(s), 0.0), 0)
            center = tl.sum(tl.where(is_base, first / s, 0.0), 0)
            tl.store(base + q * 2, lse0)
            tl.store(base + q * 2 + 1, center)
        alpha, f = _excess(part, target, rule, r, q, low, high, lse0, center, SPLITS, WIDTH)
        at, f_at, end, f_end = _bracket(alpha, f)
        tl.store(bracket + q * 2, at)
        tl.store(bracket + q * 2 + 1, end)
        if last:
            answer = at - f_at * (end - at) / (f_end - f_at)
            answer = tl.where(f_at >= 0, at, tl.where(f_end <= 0, end, answer))
            broken = (f_at != f_at) | (f_end != f_end)
            tl.store(solved + q, tl.where(broken, float("nan"), answer))
