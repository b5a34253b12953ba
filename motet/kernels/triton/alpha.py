# type: ignore
"""The strengths α that a row solves for: eight values per pass over the row (32 in the symmetric form), three passes.

Written over y = α·Δ − ℓ with any ℓ near lse_α, Δ centred under the base, φ(y) = e^y − 1 − y, ψ(y) = (y − 1)·e^y + 1 and
δ = E_0[φ(y)] − ℓ, the divergences are sums of terms that are never negative, and float32 keeps their digits however
small they are:

    KL(p_α‖p_0) = E_0[ψ(y)] / (1 + δ) − (log(1 + δ) − δ / (1 + δ))
    KL(p_0‖p_α) = E_0[φ(y)] − (δ − log(1 + δ)) = lse_α

What is to be matched, KL(p_1‖p_2) and KL(p_2‖p_1), is the same for the anti-expert moved by Δ once. Both divergences
grow with α: see `kernels.strength` for the search. A pass reads what the one before has summed over the whole row, so
passes are launches. Raw logits do: constants of a member cancel.

A row of fused experts solves once per pair of them, each pair as if it were alone: the grids count
q = r · PAIRS + pair, and so do `part`, `target`, `base`, `bracket` and `solved`.
"""

import triton
import triton.language as tl

from motet.kernels.triton.columns import (
    ALPHA_MAX,
    BUDGET,
    DYNAMIC,
    EPSILON,
    FACTOR,
    KIND,
    RULE,
    SOLVES,
    SYMMETRIC_FORM,
    WEIGHT,
)
from motet.kernels.triton.load import only_if, scaled_logits

LANES = tl.constexpr(8)
CHUNKS = 4  # programs that share the strengths of a row of the symmetric form
# columns of `part` and `target`: M, and over e^−M: E_0[φ], E_0[ψ], Σ e·Δ²
PART, PART_MAX, PART_PHI, PART_PSI, PART_SECOND = map(tl.constexpr, (4, 0, 1, 2, 3))
# columns of `stats`: maximum, Σ e, Σ e·Δ of the base; maximum, Σ e of the expert; as of the base of the anti-expert
STATS, BASE_STATS, EXPERT_STATS, ANTI_STATS = map(tl.constexpr, (8, 0, 3, 5))
STAT_MAX, STAT_SUM, STAT_FIRST = map(tl.constexpr, (0, 1, 2))  # columns of each of the three
# columns of `base`: log-sum-exp and E[Δ] of the base, of the anti-expert, and ℓ of the anti-expert moved by Δ once
BASE, BASE_LSE, BASE_MEAN, ANTI_LSE, ANTI_MEAN, ANTI_ELL = map(tl.constexpr, (5, 0, 1, 2, 3, 4))
# columns of `bracket`: α and ℓ at both ends
BRACKET, LOW, HIGH, LOW_ELL, HIGH_ELL = map(tl.constexpr, (4, 0, 1, 2, 3))
POINTS = tl.constexpr(16)  # places between two strengths at which the objective is estimated
PASSES = 3


@triton.jit
def _shift(buffers, stream, weight, rule, r, pair, offsets, V, K: tl.constexpr, DTYPE: tl.constexpr):
    """Base and Δ (raw), and which tokens all streams of Δ find possible: the pair's two, unweighted, or all that a
    budget is spent on."""
    dynamic = tl.load(rule + r * RULE + KIND).to(tl.int32) == DYNAMIC
    valid = offsets < V
    base = scaled_logits(buffers, stream, weight, r * K, offsets, valid, DTYPE)
    possible = valid & (base != -float("inf"))
    delta = tl.zeros(offsets.shape, tl.float32)
    for k in tl.static_range(1, K):
        unit = tl.where(k == 1 + 2 * pair, 1.0, tl.where(k == 2 + 2 * pair, -1.0, 0.0))
        w = tl.where(dynamic, unit, tl.load(weight + (r * K + k) * WEIGHT + FACTOR))
        x = scaled_logits(buffers, stream, weight, r * K + k, offsets, only_if(w != 0, valid), DTYPE)
        possible = tl.where(w == 0, possible, possible & (x != -float("inf")))
        delta += tl.where(w == 0, 0.0, tl.where(x == -float("inf"), 0.0, w * x))
    return base, tl.where(possible, delta, 0.0), possible


@triton.jit
def _is_symmetric(rule, r):
    return (tl.load(rule + r * RULE + KIND).to(tl.int32) == DYNAMIC) & (tl.load(rule + r * RULE + SYMMETRIC_FORM) > 0)


@triton.jit
def _solves(rule, r, pair):
    kind = tl.load(rule + r * RULE + KIND).to(tl.int32)
    return (pair < tl.load(rule + r * RULE + SOLVES)) & ((kind == DYNAMIC) | (kind == BUDGET))


@triton.jit
def _has_pair(rule, r, pair):
    return _solves(rule, r, pair) & (tl.load(rule + r * RULE + KIND).to(tl.int32) == DYNAMIC)


@triton.jit
def _log1p(x):
    """log(1 + x): a fast logarithm has no digits left where its argument is near 1."""
    s = x / (2.0 + x)
    t = s * s
    series = 2.0 * s * (1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9 + t / 11)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.log(1.0 + x))


@triton.jit
def _curvature(q):
    """−log(1 − q) − q ≥ 0, by its series near 0."""
    series = (
        q
        * q
        * (
            1.0 / 2
            + q * (1.0 / 3 + q * (1.0 / 4 + q * (1.0 / 5 + q * (1.0 / 6 + q * (1.0 / 7 + q * (1.0 / 8 + q / 9))))))
        )
    )
    return tl.where(tl.abs(q) < 0.1, series, -_log1p(-q) - q)


@triton.jit
def _terms(logprob, y, m):
    """Per token, over e^−m: p_0·e^y, p_0·φ(y), p_0·ψ(y). Impossible tokens (logprob −inf) have none of them."""
    p = tl.exp(logprob - m)
    e = tl.exp(logprob + y - m)
    near = tl.abs(y) < 0.4
    x = tl.where(near, y, 0.0)
    phi = 1.0 / 2 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720 + x / 5040))))
    psi = 1.0 / 2 + x * (1.0 / 3 + x * (1.0 / 8 + x * (1.0 / 30 + x * (1.0 / 144 + x / 840))))
    return e, tl.where(near, p * x * x * phi, e - p - p * y), tl.where(near, p * x * x * psi, (y - 1.0) * e + p)


@triton.jit
def _divergences(m, phi, psi, ell):
    """KL(p_α‖p_0), KL(p_0‖p_α) and e^−M·(1 + δ) from the sums over e^−M."""
    scale = tl.exp(-m)
    mass = phi + scale * (1.0 - ell)
    plain = m == 0.0
    delta = tl.where(plain, phi - ell, 0.0)
    quotient = delta / (1.0 + delta)
    grown = tl.where(plain, _log1p(delta), m + tl.log(mass))
    forward = tl.where(plain, psi / mass - _curvature(quotient), psi / mass + 1.0 - scale / mass - grown)
    # δ − log(1 + δ) is the curvature at −δ with its sign turned: −log(1 + δ) + δ
    backward = tl.where(plain, phi - _curvature(-delta), grown + ell)
    return tl.maximum(forward, 0.0), tl.maximum(backward, 0.0), mass


@triton.jit
def _joined(part, q, SPLITS, STRIDE: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Per lane (the first COUNT of STRIDE): M, and E_0[φ], E_0[ψ], Σ e·Δ² over e^−M, over all splits, in a fixed
    order."""
    rows = tl.arange(0, WIDTH)[:, None]
    lanes = tl.arange(0, COUNT)[None, :]
    place = part + ((q * SPLITS + rows) * STRIDE + lanes) * PART
    mask = (rows < SPLITS) & (lanes < COUNT)
    m = tl.load(place + PART_MAX, mask, 0.0)
    top = tl.max(m, 0)
    scale = tl.exp(m - top[None, :])
    phi = tl.sum(tl.load(place + PART_PHI, mask, 0.0) * scale, 0)
    psi = tl.sum(tl.load(place + PART_PSI, mask, 0.0) * scale, 0)
    second = tl.sum(tl.load(place + PART_SECOND, mask, 0.0) * scale, 0)
    return top, phi, psi, second


@triton.jit
def _joined_stats(stats, q, SPLITS, FIRST: tl.constexpr, HAS_MEAN: tl.constexpr, WIDTH: tl.constexpr):
    """Log-sum-exp and E[Δ] of one distribution whose sums begin at field FIRST."""
    lanes = tl.arange(0, WIDTH)
    mask = lanes < SPLITS
    place = stats + (q * SPLITS + lanes) * STATS + FIRST
    m = tl.load(place + STAT_MAX, mask, -float("inf"))
    top = tl.max(m, 0)
    scale = tl.exp(m - tl.where(top == -float("inf"), 0.0, top))
    s = tl.sum(tl.load(place + STAT_SUM, mask, 0.0) * scale, 0)
    mean = 0.0
    if HAS_MEAN:
        mean = tl.sum(tl.load(place + STAT_FIRST, mask, 0.0) * scale, 0) / s
    return top + tl.log(s), mean


@triton.jit
def _added(m, s, first, x, delta):
    top = tl.maximum(m, tl.max(x, 0))
    safe = tl.where(top == -float("inf"), 0.0, top)
    e = tl.exp(x - safe)
    scale = tl.exp(m - safe)
    return top, s * scale + tl.sum(e, 0), first * scale + tl.sum(e * delta, 0)


@triton.jit
def alpha_stats(
    buffers, stream, weight, stats, rule, V, tiles, PAIRS, K: tl.constexpr, SPLITS, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R · PAIRS, SPLITS): over the tokens that are possible, sums of `tiles` blocks into `stats`
    (R · PAIRS, SPLITS, STATS)."""
    q = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    r = q // PAIRS
    pair = q % PAIRS
    if _solves(rule, r, pair):
        m0 = -float("inf")
        m1 = -float("inf")
        m2 = -float("inf")
        s0 = 0.0
        s1 = 0.0
        s2 = 0.0
        d0 = 0.0
        d1 = 0.0
        d2 = 0.0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * BLOCK + tl.arange(0, BLOCK)
            l0, delta, possible = _shift(buffers, stream, weight, rule, r, pair, offsets, V, K, DTYPE)
            m0, s0, d0 = _added(m0, s0, d0, tl.where(possible, l0, -float("inf")), delta)
            if K > 2:
                x = scaled_logits(buffers, stream, weight, r * K + 2 * pair + 1, offsets, possible, DTYPE)
                m1, s1, d1 = _added(m1, s1, d1, x, delta)
                x = scaled_logits(buffers, stream, weight, r * K + 2 * pair + 2, offsets, possible, DTYPE)
                m2, s2, d2 = _added(m2, s2, d2, x, delta)
        place = stats + (q * SPLITS + split) * STATS
        tl.store(place + BASE_STATS + STAT_MAX, m0)
        tl.store(place + BASE_STATS + STAT_SUM, s0)
        tl.store(place + BASE_STATS + STAT_FIRST, d0)
        tl.store(place + EXPERT_STATS + STAT_MAX, m1)
        tl.store(place + EXPERT_STATS + STAT_SUM, s1)
        tl.store(place + ANTI_STATS + STAT_MAX, m2)
        tl.store(place + ANTI_STATS + STAT_SUM, s2)
        tl.store(place + ANTI_STATS + STAT_FIRST, d2)


@triton.jit
def alpha_centers(stats, rule, base, bracket, PAIRS, SPLITS, WIDTH: tl.constexpr):
    """Grid (R · PAIRS): `base` (R · PAIRS, 5): log-sum-exp and E[Δ] of the base; of the anti-expert; and ℓ of the
    anti-expert moved by Δ once. `bracket` (R · PAIRS, 4): α and ℓ at both ends, at first of the whole range."""
    q = tl.program_id(0).to(tl.int64)
    r = q // PAIRS
    if _solves(rule, r, q % PAIRS):
        lse, mean = _joined_stats(stats, q, SPLITS, BASE_STATS, True, WIDTH)
        tl.store(base + q * BASE + BASE_LSE, lse)
        tl.store(base + q * BASE + BASE_MEAN, mean)
        if tl.load(rule + r * RULE + KIND).to(tl.int32) == DYNAMIC:
            expert, _ = _joined_stats(stats, q, SPLITS, EXPERT_STATS, False, WIDTH)
            anti, mean = _joined_stats(stats, q, SPLITS, ANTI_STATS, True, WIDTH)
            tl.store(base + q * BASE + ANTI_LSE, anti)
            tl.store(base + q * BASE + ANTI_MEAN, mean)
            tl.store(base + q * BASE + ANTI_ELL, expert - anti - mean)
        tl.store(bracket + q * BRACKET + LOW, 0.0)
        tl.store(bracket + q * BRACKET + HIGH, tl.load(rule + r * RULE + ALPHA_MAX))
        tl.store(bracket + q * BRACKET + LOW_ELL, 0.0)
        tl.store(bracket + q * BRACKET + HIGH_ELL, 0.0)


@triton.jit
def alpha_targets(
    buffers, stream, weight, target, rule, base, V, tiles, PAIRS, K: tl.constexpr, SPLITS, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R · PAIRS, SPLITS): of the pairs of experts, sums of KL(p_1‖p_2) and KL(p_2‖p_1) over `tiles` blocks, into
    `target` (R · PAIRS, SPLITS, 1, PART)."""
    q = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    r = q // PAIRS
    pair = q % PAIRS
    if _has_pair(rule, r, pair):
        lse = tl.load(base + q * BASE + ANTI_LSE)
        center = tl.load(base + q * BASE + ANTI_MEAN) + tl.load(base + q * BASE + ANTI_ELL)
        m = 0.0
        phi = 0.0
        psi = 0.0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * BLOCK + tl.arange(0, BLOCK)
            _, delta, possible = _shift(buffers, stream, weight, rule, r, pair, offsets, V, K, DTYPE)
            x = scaled_logits(buffers, stream, weight, r * K + 2 * pair + 2, offsets, possible, DTYPE) - lse
            y = tl.where(possible, delta - center, 0.0)
            top = tl.maximum(m, tl.max(x + y, 0))
            _, more_phi, more_psi = _terms(x, y, top)
            scale = tl.exp(m - top)
            phi = phi * scale + tl.sum(more_phi, 0)
            psi = psi * scale + tl.sum(more_psi, 0)
            m = top
        place = target + (q * SPLITS + split) * PART
        tl.store(place + PART_MAX, m)
        tl.store(place + PART_PHI, phi)
        tl.store(place + PART_PSI, psi)
        tl.store(place + PART_SECOND, 0.0)


@triton.jit
def alpha_pass(
    buffers, stream, weight, rule, part, base, bracket, V, tiles, PAIRS, K: tl.constexpr, SPLITS,
    COUNT: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R · PAIRS, SPLITS, COUNT / 8): sums at eight of a row's α, evenly between the ends of its bracket, into
    `part` (R · PAIRS, SPLITS, COUNT, PART)."""
    q = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    chunk = tl.program_id(2)
    r = q // PAIRS
    pair = q % PAIRS
    if _solves(rule, r, pair) & ((chunk == 0) | _is_symmetric(rule, r)):
        lse0 = tl.load(base + q * BASE + BASE_LSE)
        center = tl.load(base + q * BASE + BASE_MEAN)
        lanes = chunk * LANES + tl.arange(0, LANES)
        alpha, ell = _strengths(bracket, rule, r, q, lanes)
        m = tl.zeros((LANES,), tl.float32)
        phi = tl.zeros((LANES,), tl.float32)
        psi = tl.zeros((LANES,), tl.float32)
        second = tl.zeros((LANES,), tl.float32)
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * BLOCK + tl.arange(0, BLOCK)
            l0, delta, possible = _shift(buffers, stream, weight, rule, r, pair, offsets, V, K, DTYPE)
            delta = tl.where(possible, delta - center, 0.0)
            logprob = tl.where(possible, l0 - lse0, -float("inf"))[None, :]
            y = alpha[:, None] * delta[None, :] - ell[:, None]
            top = tl.maximum(m, tl.max(logprob + y, 1))
            e, more_phi, more_psi = _terms(logprob, y, top[:, None])
            scale = tl.exp(m - top)
            phi = phi * scale + tl.sum(more_phi, 1)
            psi = psi * scale + tl.sum(more_psi, 1)
            second = second * scale + tl.sum(e * (delta * delta)[None, :], 1)
            m = top
        place = part + ((q * SPLITS + split) * COUNT + lanes) * PART
        tl.store(place + PART_MAX, m)
        tl.store(place + PART_PHI, phi)
        tl.store(place + PART_PSI, psi)
        tl.store(place + PART_SECOND, second)


@triton.jit
def _strengths(bracket, rule, r, q, lanes):
    """α of lanes, and ℓ: lse_α as a straight line between the ends of the bracket."""
    low = tl.load(bracket + q * BRACKET + LOW)
    high = tl.load(bracket + q * BRACKET + HIGH)
    at = tl.load(bracket + q * BRACKET + LOW_ELL)
    end = tl.load(bracket + q * BRACKET + HIGH_ELL)
    share = lanes.to(tl.float32) / tl.where(_is_symmetric(rule, r), 31.0, 7.0)
    return low + (high - low) * share, at + (end - at) * share


@triton.jit
def _at(values, lanes, place):
    return tl.sum(tl.where(lanes == place, values, 0.0), 0)


@triton.jit
def _following(values, COUNT: tl.constexpr):
    """Each lane gets the value of the next one, the last lane 0."""
    lanes = tl.arange(0, COUNT)
    return tl.sum(tl.where(lanes[:, None] + 1 == lanes[None, :], values[None, :], 0.0), 1)


@triton.jit
def _hull(objective, forward, backward, f, b, COUNT: tl.constexpr):
    """The lanes between which the minimum lies, by the bounds that two growing divergences give."""
    lanes = tl.arange(0, COUNT)
    best = tl.min(objective, 0)
    over = tl.maximum(tl.maximum(forward - f, f - _following(forward, COUNT)), 0.0)
    under = tl.maximum(tl.maximum(backward - b, b - _following(backward, COUNT)), 0.0)
    may = (over * over + under * under <= best) & (lanes < COUNT - 1)
    first = tl.min(tl.where(may, lanes, COUNT - 2), 0)
    return first, tl.maximum(tl.max(tl.where(may, lanes + 1, 0), 0), first + 1)


@triton.jit
def _between(values, slopes, width, t, COUNT: tl.constexpr):
    """(COUNT, POINTS) growing values between those of a lane and the next, see `kernels.strength`."""
    low = values[:, None]
    step = (_following(values, COUNT) - values)[:, None]
    start = tl.minimum(slopes[:, None] * width, 3.0 * step)
    end = tl.minimum(_following(slopes, COUNT)[:, None] * width, 3.0 * step)
    return low + step * t * t * (3.0 - 2.0 * t) + start * t * (1.0 - t) * (1.0 - t) - end * t * t * (1.0 - t)


@triton.jit
def _cell(forward, backward, forward_slope, backward_slope, slope, f, b, width, last, COUNT: tl.constexpr):
    """The lane after which the objective is estimated to be least, and at which share of the way to the next. At last,
    where the objective itself has no more digits, among those after which its slope changes its sign, if there are."""
    lanes = tl.arange(0, COUNT)
    points = tl.arange(0, POINTS)
    t = points.to(tl.float32)[None, :] / (POINTS - 1.0)
    over = _between(forward, forward_slope, width, t, COUNT) - f
    under = _between(backward, backward_slope, width, t, COUNT) - b
    crosses = (slope < 0) & (_following(slope, COUNT) > 0)
    chosen = (lanes < COUNT - 1) & (crosses | (tl.sum(crosses.to(tl.int32), 0) == 0) | (last == 0))
    estimate = tl.where(chosen[:, None], over * over + under * under, float("inf"))
    order = lanes[:, None] * POINTS + points[None, :]
    place = tl.min(tl.min(tl.where(estimate == tl.min(tl.min(estimate, 1), 0), order, COUNT * POINTS), 1), 0)
    cell = tl.minimum(place // POINTS, COUNT - 2)
    return cell, (place % POINTS).to(tl.float32) / (POINTS - 1.0)


@triton.jit
def _search(
    part, target, rule, base, bracket, solved, r, q, number, last, SPLITS, STRIDE: tl.constexpr, COUNT: tl.constexpr,
    WIDTH: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """The bracket of the next pass; after the last one, α into `solved`."""
    lanes = tl.arange(0, COUNT)
    alpha, ell = _strengths(bracket, rule, r, q, lanes)
    m, phi, psi, second = _joined(part, q, SPLITS, STRIDE, COUNT, WIDTH)
    forward, backward, mass = _divergences(m, phi, psi, ell)
    f, b = _targets(target, rule, base, r, q, SPLITS, WIDTH)
    if SYMMETRIC:
        mean = tl.where(alpha > 0, (forward + backward) / tl.maximum(alpha, 1e-30), 0.0)
        forward_slope = alpha * tl.maximum(second / mass - mean * mean, 0.0)
        slope = (forward - f) * forward_slope + (backward - b) * mean
        objective = (forward - f) * (forward - f) + (backward - b) * (backward - b)
        width = _at(alpha, lanes, 1) - _at(alpha, lanes, 0)
        at, share = _cell(forward, backward, forward_slope, mean, slope, f, b, width, last, COUNT)
        end = at + 1
        if number == 0:
            at, end = _hull(objective, forward, backward, f, b, COUNT)
        excess = slope
    else:
        excess = tl.sqrt(forward) - tl.sqrt(f)
        at = tl.minimum(tl.maximum(tl.sum((excess < 0).to(tl.int32), 0) - 1, 0), COUNT - 2)
        end = at + 1
        share = tl.where(_at(excess, lanes, at) >= 0, 0.0, 1.0)
    low = _at(alpha, lanes, at)
    high = _at(alpha, lanes, end)
    tl.store(bracket + q * BRACKET + LOW, low)
    tl.store(bracket + q * BRACKET + HIGH, high)
    tl.store(bracket + q * BRACKET + LOW_ELL, _at(backward, lanes, at))
    tl.store(bracket + q * BRACKET + HIGH_ELL, _at(backward, lanes, end))
    if last:
        f_low = _at(excess, lanes, at)
        f_high = _at(excess, lanes, end)
        crosses = (f_low < 0) & (f_high > 0)
        part_way = -f_low / tl.where(crosses, f_high - f_low, 1.0)
        answer = low + (high - low) * tl.where(crosses, part_way, share)
        broken = (f_low != f_low) | (f_high != f_high)
        tl.store(solved + q, tl.where(broken, float("nan"), answer))


@triton.jit
def _targets(target, rule, base, r, q, SPLITS, WIDTH: tl.constexpr):
    """(forward, backward) divergences to match: KL(p_1‖p_2) and KL(p_2‖p_1), or ε."""
    budgeted = tl.load(rule + r * RULE + KIND).to(tl.int32) == BUDGET
    forward = tl.load(rule + r * RULE + EPSILON)
    backward = 0.0
    if budgeted == 0:
        m, phi, psi, _ = _joined(target, q, SPLITS, 1, 1, WIDTH)
        forwards, backwards, _ = _divergences(m, phi, psi, tl.load(base + q * BASE + ANTI_ELL))
        forward = tl.sum(forwards, 0)
        backward = tl.sum(backwards, 0)
    return forward, backward


@triton.jit
def alpha_narrow(
    part, target, rule, base, bracket, solved, number, last, PAIRS, SPLITS, COUNT: tl.constexpr, WIDTH: tl.constexpr
):
    """Grid (R · PAIRS), after each pass."""
    q = tl.program_id(0).to(tl.int64)
    r = q // PAIRS
    if _solves(rule, r, q % PAIRS):
        if COUNT > 8:
            if _is_symmetric(rule, r):
                _search(
                    part, target, rule, base, bracket, solved, r, q, number, last, SPLITS, COUNT, COUNT, WIDTH, True
                )
            else:
                _search(part, target, rule, base, bracket, solved, r, q, number, last, SPLITS, COUNT, 8, WIDTH, False)
        else:
            _search(part, target, rule, base, bracket, solved, r, q, number, last, SPLITS, COUNT, 8, WIDTH, False)
