# type: ignore
"""The composed score of one tile of one row: the formula of `reference` and `cores`, for all rules at once."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import (
    ALPHA,
    BUDGET,
    CASCADE,
    COUNT,
    CUTOFF,
    DISCRIMINATOR,
    DIVERGENCE,
    DYNAMIC,
    FACTOR,
    GATE,
    GRAMMAR,
    INFO,
    INVERSE,
    JUDGED,
    KIND,
    LINEAR,
    LSE,
    MASKS,
    OMEGA,
    RELAXED,
    RELU,
    ROUTED,
    RULE,
    SETS,
    SHARE,
    SLOT,
    SPARSE,
    STREAM,
    TIE,
    TOTAL,
    UNWANTED_SUM,
    WANTED_SUM,
    WEIGHT,
)
from motet.kernels.triton.load import load_logits, only_if, scaled_logits


@triton.jit
def inside_set(buffers, stream, sets, tau, r, number, offsets, mask, K, S, DTYPE: tl.constexpr):
    """Which tokens lie in a row's plausible set: raw logits of its stream against the threshold `tau` (R, S)."""
    place = r * S + number
    slot = tl.load(sets + place * SETS + SLOT)
    x = load_logits(buffers, stream, r * K + slot, offsets, mask, DTYPE)
    return (x < tl.load(tau + place)) == 0  # NaN stays in: a broken stream must show


@triton.jit
def plausible_tokens(
    buffers, stream, sets, tau, info, r, offsets, V, K, S: tl.constexpr, RELAXES: tl.constexpr, DTYPE: tl.constexpr
):
    """Tokens (bool) that every plausible set of the row keeps; all of them in a row that is relaxed (RELAXES)."""
    keep = offsets < V
    relaxed = 0
    if RELAXES:
        relaxed = tl.load(info + r * INFO + RELAXED)
    for number in tl.static_range(S):
        if (tl.load(sets + (r * S + number) * SETS + MASKS) != 0) & (relaxed == 0):
            keep = keep & inside_set(buffers, stream, sets, tau, r, number, offsets, keep, K, S, DTYPE)
    return keep


@triton.jit
def grammar_tokens(info, words, r, offsets, keep, W):
    """`keep` without the tokens that the row's grammar forbids; a row without a grammar loads nothing."""
    number = tl.load(info + r * INFO + GRAMMAR)
    if number >= 0:
        # number · W stays int32 only up to 268,435 grammars of 256,000 tokens
        word = tl.load(words + number.to(tl.int64) * W + offsets // 32, keep, 0)
        keep = keep & (((word >> (offsets % 32)) & 1) != 0)
    return keep


@triton.jit
def kept_tokens(
    buffers, stream, sets, tau, info, words, r, offsets, V, W, K, S: tl.constexpr, BOUND: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Tokens (bool) that the composition's masks and, where some row is BOUND by one, the grammars keep."""
    keep = plausible_tokens(buffers, stream, sets, tau, info, r, offsets, V, K, S, BOUND, DTYPE)
    if BOUND:
        keep = grammar_tokens(info, words, r, offsets, keep, W)
    return keep


@triton.jit
def _weighted_sum(
    buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K: tl.constexpr, S: tl.constexpr,
    RULES: tl.constexpr, GATED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Σ w_k · logits_k / T_k; gated terms are normalised. In rows that solve for α, it scales all but the base."""
    z = tl.zeros(offsets.shape, tl.float32)
    banned = ~keep
    for k in tl.static_range(K):
        slot = r * K + k
        w = tl.load(weight + slot * WEIGHT + FACTOR)
        # a token that is masked, and a stream of weight 0, cost no traffic
        x = load_logits(buffers, stream, slot, offsets, only_if(w != 0, keep), DTYPE)
        scale = w
        if RULES and k > 0:
            kind = tl.load(rule + r * RULE + KIND).to(tl.int32)
            pair = tl.where(kind == DYNAMIC, (k - 1) // 2, 0)
            known = ((kind == DYNAMIC) | (kind == BUDGET)) & (pair < PAIRS)
            scale = w * tl.load(solved + r * PAIRS + pair, known, 1.0)
        term = scale * x * tl.load(weight + slot * WEIGHT + INVERSE)
        impossible = only_if(w != 0, x == -float("inf"))  # by the weight: an α of 0 does not make a token possible
        if GATED:
            gate = tl.load(stream + slot * STREAM + GATE)
            if gate >= 0:
                within = inside_set(buffers, stream, sets, tau, r, gate, offsets, keep, K, S, DTYPE)
                term = tl.where(within, term - w * tl.load(lse + slot * LSE + TOTAL), 0.0)
                impossible = impossible & within
        banned = banned | impossible
        z += tl.where(w == 0, 0.0, tl.where(impossible, 0.0, term))
    return tl.where(banned, -float("inf"), z)


@triton.jit
def _logprob(buffers, stream, weight, lse, slot, offsets, keep, DTYPE: tl.constexpr):
    x = scaled_logits(buffers, stream, weight, slot, offsets, keep, DTYPE)
    return x - tl.load(lse + slot * LSE + TOTAL)


@triton.jit
def _mixture(
    buffers, stream, weight, rule, lse, solved, r, kind, offsets, keep, PAIRS, K: tl.constexpr, DTYPE: tl.constexpr
):
    """log Σ w_k p_k; ROUTED and CASCADE take (1 − d, d) instead of the weights, from the row's gate or what was found
    for it; SPARSE the base alone where nothing was found to be composed."""
    gate = tl.load(rule + r * RULE + SHARE)
    threshold = tl.load(rule + r * RULE + CUTOFF)
    share = tl.where(threshold >= 0, (gate > threshold).to(tl.float32), gate)
    found = tl.load(solved + r * PAIRS)
    share = tl.where(kind == CASCADE, found, share)
    top = tl.full(offsets.shape, -float("inf"), tl.float32)
    total = tl.zeros(offsets.shape, tl.float32)
    for k in tl.static_range(K):
        w = tl.load(weight + (r * K + k) * WEIGHT + FACTOR)
        if (kind == ROUTED) | (kind == CASCADE):
            w = tl.where(k == 0, 1.0 - share, tl.where(k == 1, share, 0.0))
        if (kind == SPARSE) & (found == 0):
            w = tl.where(k == 0, 1.0, 0.0)
        x = _logprob(buffers, stream, weight, lse, r * K + k, offsets, only_if(w > 0, keep), DTYPE)
        x = tl.where(w > 0, x, -float("inf"))
        above = tl.where(x != x, x, tl.maximum(top, x))
        safe = tl.where(above == -float("inf"), 0.0, above)
        total = total * tl.exp(top - safe) + w * tl.exp(x - safe)
        top = above
    z = tl.where(total == 0.0, -float("inf"), top + tl.log(total))
    return tl.where(((kind == CASCADE) | (kind == SPARSE)) & (found != found), found, z)


@triton.jit
def discriminator_logit(buffers, stream, weight, rule, lse, r, offsets, keep, K, DTYPE: tl.constexpr):
    """s of GeDi, and whether the wanted class finds the token impossible (s is then −inf)."""
    wanted = _logprob(buffers, stream, weight, lse, r * K + 1, offsets, keep, DTYPE)
    unwanted = _logprob(buffers, stream, weight, lse, r * K + 2, offsets, keep, DTYPE)
    sums = tl.load(rule + r * RULE + WANTED_SUM) - tl.load(rule + r * RULE + UNWANTED_SUM)
    s = (sums + wanted - unwanted) / (tl.load(rule + r * RULE + JUDGED) + 1.0)
    return tl.where(wanted == -float("inf"), -float("inf"), s)


@triton.jit
def _discriminator(buffers, stream, weight, rule, lse, solved, r, offsets, keep, PAIRS, K, DTYPE: tl.constexpr):
    """L_0 + ω · log σ(s), −inf below the row's threshold of s."""
    base = _logprob(buffers, stream, weight, lse, r * K, offsets, keep, DTYPE)
    s = discriminator_logit(buffers, stream, weight, rule, lse, r, offsets, keep, K, DTYPE)
    log_sigmoid = tl.minimum(s, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(s)))
    z = base + tl.load(rule + r * RULE + OMEGA) * log_sigmoid
    z = tl.where(s != s, s, z)
    impossible = (base == -float("inf")) | (s == -float("inf")) | (s < tl.load(solved + r * PAIRS))
    return tl.where(impossible, -float("inf"), z)


@triton.jit
def difference(buffers, stream, weight, lse, r, offsets, keep, K, DTYPE: tl.constexpr):
    """L_1 − L_2, +inf where stream 2 finds the token impossible."""
    without = _logprob(buffers, stream, weight, lse, r * K + 1, offsets, keep, DTYPE)
    full = _logprob(buffers, stream, weight, lse, r * K + 2, offsets, keep, DTYPE)
    return tl.where(full == -float("inf"), float("inf"), without - full)


@triton.jit
def _divergence(buffers, stream, weight, rule, lse, solved, r, offsets, keep, PAIRS, K, DTYPE: tl.constexpr):
    """L_0, −inf where the difference is below 0 and not above the row's threshold (see `cores.divergence`)."""
    base = _logprob(buffers, stream, weight, lse, r * K, offsets, keep, DTYPE)
    d = difference(buffers, stream, weight, lse, r, offsets, keep, K, DTYPE)
    disfavoured = (d < -TIE) & (d <= tl.load(solved + r * PAIRS) + TIE)
    disfavoured = only_if(tl.load(rule + r * RULE + COUNT) > 0, disfavoured)
    return tl.where(d != d, d, tl.where(disfavoured, -float("inf"), base))


@triton.jit
def _relu(buffers, stream, weight, rule, lse, r, offsets, keep, K, DTYPE: tl.constexpr):
    """L_0 − α · relu(L_1 − L_0)."""
    base = _logprob(buffers, stream, weight, lse, r * K, offsets, keep, DTYPE)
    excess = _logprob(buffers, stream, weight, lse, r * K + 1, offsets, keep, DTYPE) - base
    excess = tl.where(excess != excess, excess, tl.maximum(excess, 0.0))
    z = base - tl.load(rule + r * RULE + ALPHA) * excess
    return tl.where(base == -float("inf"), -float("inf"), z)


@triton.jit
def tile_scores(
    buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K: tl.constexpr, S: tl.constexpr,
    RULES: tl.constexpr, GATED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """z (float32) at `offsets` of row r (int64), up to a constant of the row.

    Parameters:
        buffers, stream, weight, rule, sets, tau, lse, solved: tables, see `columns`.
        r: () int64: the row.
        offsets: (BLOCK,) int32: tokens.
        keep: (BLOCK,) bool: tokens that the masks leave; the others become −inf.
        PAIRS: columns of `solved`.
        K, S: slots and sets of a row.
        RULES: whether any row is no plain weighted sum.
        GATED: whether any term has a gate.
        DTYPE: element types and alignment, see `load.load_logits`.
    """
    if RULES:
        kind = tl.load(rule + r * RULE + KIND).to(tl.int32)
        if (kind == LINEAR) | (kind == DYNAMIC) | (kind == BUDGET):
            z = _weighted_sum(
                buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, RULES, GATED,
                DTYPE,
            )  # fmt: skip
        elif kind == RELU:
            z = _relu(buffers, stream, weight, rule, lse, r, offsets, keep, K, DTYPE)
        elif kind == DISCRIMINATOR:
            z = _discriminator(buffers, stream, weight, rule, lse, solved, r, offsets, keep, PAIRS, K, DTYPE)
        elif kind == DIVERGENCE:
            z = _divergence(buffers, stream, weight, rule, lse, solved, r, offsets, keep, PAIRS, K, DTYPE)
        else:
            z = _mixture(buffers, stream, weight, rule, lse, solved, r, kind, offsets, keep, PAIRS, K, DTYPE)
        z = tl.where(keep, z, -float("inf"))
    else:
        z = _weighted_sum(
            buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, RULES, GATED, DTYPE
        )  # fmt: skip
    return z
