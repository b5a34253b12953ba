# type: ignore
"""Compose, mask, draw and report in one read of the logits: `scan` over parts of the vocabulary, `finish` per row.

Every part is a whole number of tiles, parts are joined in a fixed order, and the noise belongs to tiles and tokens:
the same seed gives the same token for any split.
"""

import triton
import triton.language as tl

from motet.kernels.triton.columns import (
    DRAW,
    FORCED,
    GRAMMAR,
    INFO,
    KL,
    LOG_SUM,
    LOGPROB,
    PARAMS,
    RELAXED,
    REPORT,
    SEED,
    TEMPERATURE,
    TRACED,
)
from motet.kernels.triton.load import add_mass, is_left_out, join_mass, load_logits, log_total, only_if
from motet.kernels.triton.noise import gumbel, token_seed
from motet.kernels.triton.scores import grammar_tokens, kept_tokens, plausible_tokens, tile_scores

# columns of `part`: maximum m and Σ e^(z − m); Σ e·(z − base) of a traced row; the base's maximum and sum; the best key
# and its tile
PART, PART_MAX, PART_SUM, PART_MOVED = map(tl.constexpr, (7, 0, 1, 2))
PART_BASE_MAX, PART_BASE_SUM, PART_KEY, PART_TILE = map(tl.constexpr, (3, 4, 5, 6))


@triton.jit
def _key(z, temperature, seed, tile):
    """What tiles compete with: log-sum-exp at the temperature plus noise, or the maximum of a greedy row."""
    m, s = add_mass(-float("inf"), 0.0, z / tl.where(temperature > 0, temperature, 1.0))
    if temperature > 0:
        m = log_total(m, s) + gumbel(seed, tile)
    return m


@triton.jit
def scan(
    buffers, stream, weight, rule, sets, tau, lse, solved, info, words, params, draw, part, composed, V, W, PAIRS,
    tiles, SPLITS, K: tl.constexpr, S: tl.constexpr, RULES: tl.constexpr, GATED: tl.constexpr, BOUND: tl.constexpr,
    TRACES: tl.constexpr, STORE: tl.constexpr, ONLY: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R, SPLITS), `tiles` tiles each.

    - `params` (R, 4) float32: temperature (0 is greedy), and what `warp` reads; `draw` (R, 2) int64: seed, and
      the forced token or −1.
    - `part` (R, SPLITS, 7) float32 is written; a tile's number is exact there (below 2²⁴).
    - `composed` (R, V) float32 is written with z where STORE.
    - BOUND, TRACES: whether any row has a grammar, or is traced. ONLY: see `is_left_out`.
    """
    r = tl.program_id(0).to(tl.int64)  # r · V passes 2³¹
    split = tl.program_id(1)
    if is_left_out(info, r, ONLY):
        return
    temperature = tl.load(params + r * PARAMS + TEMPERATURE)
    row_seed = tl.load(draw + r * DRAW + SEED)
    traced = 0
    if TRACES:
        traced = tl.load(info + r * INFO + TRACED)
    m = -float("inf")
    s = 0.0
    moved = 0.0
    m0 = -float("inf")
    s0 = 0.0
    best = -float("inf")
    best_tile = split * tiles  # where no key is larger than −inf
    for tile in range(split * tiles, (split + 1) * tiles):
        offsets = tile * TILE + tl.arange(0, TILE)
        keep = kept_tokens(buffers, stream, sets, tau, info, words, r, offsets, V, W, K, S, BOUND, DTYPE)
        z = tile_scores(
            buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, RULES, GATED, DTYPE
        )  # fmt: skip
        if STORE:
            tl.store(composed + r * V + offsets, z, offsets < V)
        before = m
        m, s = add_mass(m, s, z)
        if traced != 0:  # the base's own mass counts the masked tokens too
            base = load_logits(buffers, stream, r * K, offsets, offsets < V, DTYPE)
            safe = tl.where(m == -float("inf"), 0.0, m)
            e = tl.exp(z - safe)
            moved = moved * tl.exp(before - safe) + tl.sum(e * tl.where(e == 0.0, 0.0, z - base), 0)
            m0, s0 = add_mass(m0, s0, base)
        number = tl.full((), 0, tl.int32) + tile  # the interpreter's loop variables are no tensors
        key = _key(z, temperature, row_seed, number)
        if key > best:
            best = key
            best_tile = number
    place = part + (r * SPLITS + split) * PART
    tl.store(place + PART_MAX, m)
    tl.store(place + PART_SUM, s)
    tl.store(place + PART_MOVED, moved)
    tl.store(place + PART_BASE_MAX, m0)
    tl.store(place + PART_BASE_SUM, s0)
    tl.store(place + PART_KEY, best)
    tl.store(place + PART_TILE, best_tile.to(tl.float32))


@triton.jit
def base_argmax(buffers, stream, r, V, K, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """The base's most likely token (the lowest of a tie) and its logit: for rows whose masks leave nothing."""
    best = -float("inf")
    token = 0
    for start in range(0, V, TILE):
        offsets = start + tl.arange(0, TILE)
        x = load_logits(buffers, stream, r * K, offsets, offsets < V, DTYPE)
        top = tl.max(x, 0)
        if top > best:
            best = top
            token = tl.min(tl.where(x == top, offsets, 2147483647), 0)
    return token, best


@triton.jit
def _row_total(part, r, SPLITS, WIDTH: tl.constexpr):
    """Maximum, mass and log-sum-exp of a row's z."""
    lanes = tl.arange(0, WIDTH)
    place = part + (r * SPLITS + lanes) * PART
    m = tl.load(place + PART_MAX, lanes < SPLITS, -float("inf"))
    m, s = join_mass(m, tl.load(place + PART_SUM, lanes < SPLITS, 0.0))
    return m, s, log_total(m, s)


@triton.jit
def _may(info, words, r, token, V, W, BOUND: tl.constexpr):
    """Whether the row's grammar, where it has one, lets a token be."""
    keep = token < V
    if BOUND:
        keep = grammar_tokens(info, words, r, token, keep, W)
    return keep


@triton.jit
def relax(
    buffers, stream, weight, rule, sets, tau, lse, solved, info, words, part, V, W, PAIRS, SPLITS, K: tl.constexpr,
    S: tl.constexpr, RULES: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R), after `scan`. A row whose grammar allows nothing that is plausible is scanned once more without its
    plausible sets: column RELAXED of `info` is written. As in `decode.decode`, the arg-max of the base stands for a
    row whose plausible sets alone leave nothing."""
    r = tl.program_id(0).to(tl.int64)
    _, _, total = _row_total(part, r, SPLITS, WIDTH)
    relaxed = 0
    if (total == -float("inf")) & (tl.load(info + r * INFO + GRAMMAR) >= 0):
        best = -float("inf")
        for start in range(0, V, TILE):
            offsets = start + tl.arange(0, TILE)
            keep = plausible_tokens(buffers, stream, sets, tau, info, r, offsets, V, K, S, False, DTYPE)
            z = tile_scores(
                buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, RULES, GATED,
                DTYPE,
            )  # fmt: skip
            best = tl.maximum(best, tl.max(z, 0))
        relaxed = 1
        if best == -float("inf"):
            token, _ = base_argmax(buffers, stream, r, V, K, TILE, DTYPE)
            relaxed = 1 - _may(info, words, r, token, V, W, True).to(tl.int32)
    tl.store(info + r * INFO + RELAXED, relaxed)


@triton.jit
def finish(
    buffers, stream, weight, rule, sets, tau, lse, solved, info, words, params, draw, part, token_out, report, rank, V,
    W, PAIRS, SPLITS, K: tl.constexpr, S: tl.constexpr, RULES: tl.constexpr, GATED: tl.constexpr, BOUND: tl.constexpr,
    TRACES: tl.constexpr, ONLY: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R). Where `draw` forces no token (−1), one is drawn. WIDTH: SPLITS up to a power of two.

    Writes `token_out` (R,) int64, `report` (R, 3) float32: log-prob of the token, log-sum-exp of z, KL(composed‖base)
    (NaN without a trace), and the start of `base_rank`'s count, `rank` (R,) int64 (−1 without a trace). Rows that are
    drawn again from their normalised, filtered scores (ONLY) write the token and its score alone.
    """
    r = tl.program_id(0).to(tl.int64)
    if is_left_out(info, r, ONLY):
        return
    lanes = tl.arange(0, WIDTH)
    inside = lanes < SPLITS
    place = part + (r * SPLITS + lanes) * PART
    m, s, total = _row_total(part, r, SPLITS, WIDTH)
    safe = tl.where(m == -float("inf"), 0.0, m)
    kl = float("nan")
    traced = 0
    lse0 = 0.0
    if TRACES:
        traced = tl.load(info + r * INFO + TRACED)
        m0, s0 = join_mass(
            tl.load(place + PART_BASE_MAX, inside, -float("inf")), tl.load(place + PART_BASE_SUM, inside, 0.0)
        )
        lse0 = log_total(m0, s0)
        scale = tl.exp(tl.load(place + PART_MAX, inside, -float("inf")) - safe)
        moved = tl.sum(tl.load(place + PART_MOVED, inside, 0.0) * scale, 0)
        kl = tl.where(traced != 0, moved / s - total + lse0, float("nan"))
    keys = tl.load(place + PART_KEY, inside, -float("inf"))
    tiles = tl.load(place + PART_TILE, inside, 0.0).to(tl.int32)
    best = tl.max(keys, 0)
    tile = tl.min(tl.where(inside & (keys == best), tiles, 2147483647), 0)
    token = tl.load(draw + r * DRAW + FORCED)
    is_forced = token >= 0
    if total == -float("inf"):
        fallback, logit = base_argmax(buffers, stream, r, V, K, TILE, DTYPE)
        possible = only_if(ONLY < 0, _may(info, words, r, fallback, V, W, BOUND))
        score = tl.where(possible & ((token == fallback) | (is_forced == 0)), 0.0, -float("inf"))
        token = tl.where(is_forced, token, fallback.to(tl.int64))
        kl = tl.where(traced != 0, tl.where(possible, lse0 - logit, 0.0), float("nan"))
    else:
        tile = tl.where(is_forced, (token // TILE).to(tl.int32), tl.where(best == -float("inf"), 0, tile))
        tile = tl.minimum(tile, (V - 1) // TILE)  # no key was larger than −inf: the row holds NaN
        offsets = tile * TILE + tl.arange(0, TILE)
        keep = kept_tokens(buffers, stream, sets, tau, info, words, r, offsets, V, W, K, S, BOUND, DTYPE)
        z = tile_scores(
            buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, RULES, GATED, DTYPE
        )  # fmt: skip
        temperature = tl.load(params + r * PARAMS + TEMPERATURE)
        value = z
        if temperature > 0:
            value = z / temperature + gumbel(token_seed(tl.load(draw + r * DRAW + SEED)), offsets)
        value = tl.where(offsets < V, value, -float("inf"))
        drawn = tl.min(tl.where(value == tl.max(value, 0), offsets, 2147483647), 0)
        token = tl.where(is_forced, token, tl.minimum(drawn, V - 1).to(tl.int64))
        score = tl.sum(tl.where(offsets == token, z, 0.0), 0)
        if ONLY < 0:
            score = tl.where(total != total, total, score - total)
    tl.store(token_out + r, token)
    tl.store(report + r * REPORT + LOGPROB, score)
    if ONLY < 0:
        tl.store(report + r * REPORT + LOG_SUM, total)
        tl.store(report + r * REPORT + KL, kl)
        tl.store(rank + r, tl.where(traced != 0, 0, -1).to(tl.int64))


@triton.jit
def base_rank(buffers, stream, info, token, rank, V, tiles, K, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Grid (R, SPLITS), after the last `finish`: the tokens of traced rows that the base finds likelier than the
    chosen one are added to `rank` (R,) int64. A sum of integers is the same in any order."""
    r = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if tl.load(info + r * INFO + TRACED) != 0:
        chosen_token = tl.load(token + r)
        chosen = load_logits(buffers, stream, r * K, chosen_token, chosen_token < V, DTYPE)
        count = 0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * TILE + tl.arange(0, TILE)
            x = load_logits(buffers, stream, r * K, offsets, offsets < V, DTYPE)
            count += tl.sum((x > chosen).to(tl.int32), 0)
        tl.atomic_add(rank + r, count.to(tl.int64))


@triton.jit
def normalise(
    buffers, stream, info, words, composed, report, V, W, K, BOUND: tl.constexpr, ONLY: tl.constexpr,
    TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R, tiles): `composed` (R, V) −= its log-sum-exp (`report`), in place; a row whose masks leave nothing gets
    its base's arg-max."""
    r = tl.program_id(0).to(tl.int64)
    if is_left_out(info, r, ONLY):
        return
    offsets = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.load(report + r * REPORT + LOG_SUM)
    place = composed + r * V + offsets
    z = tl.load(place, offsets < V, -float("inf"))
    if total == -float("inf"):
        token, _ = base_argmax(buffers, stream, r, V, K, TILE, DTYPE)
        may = _may(info, words, r, token, V, W, BOUND)
        z = tl.where(only_if(may, offsets == token), 0.0, z)
    else:
        z = z - total
    tl.store(place, z, offsets < V)
