# type: ignore
"""Compose, mask, draw and report in one read of the logits: `scan` over parts of the vocabulary, `finish` per row.

Every part is a whole number of tiles, parts are joined in a fixed order, and the noise belongs to tiles and tokens:
the same seed gives the same token for any split.
"""

import triton
import triton.language as tl

from motet.kernels.triton.load import add_mass, join_mass, load_logits, log_total
from motet.kernels.triton.noise import gumbel, token_seed
from motet.kernels.triton.scores import masked_tokens, tile_scores

FIELDS = tl.constexpr(7)  # of a part: m and s of z; Σ e·(z − base); m and s of the base; best key; its tile


@triton.jit
def _key(z, temperature, seed, tile):
    """What tiles compete with: log-sum-exp at the temperature plus noise, or the maximum of a greedy row."""
    m, s = add_mass(-float("inf"), 0.0, z / tl.where(temperature > 0, temperature, 1.0))
    if temperature > 0:
        m = log_total(m, s) + gumbel(seed, tile)
    return m


@triton.jit
def scan(
    buffers, stream, weight, rule, sets, tau, lse, solved, temperature, seed, part, composed, V, tiles, SPLITS,
    K: tl.constexpr, S: tl.constexpr, RULES: tl.constexpr, GATED: tl.constexpr, STORE: tl.constexpr,
    TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R, SPLITS), `tiles` tiles each.

    - `temperature` (R,) float32, 0 is greedy; `seed` (R,) int64.
    - `part` (R, SPLITS, 7) float32 is written; a tile's number is exact there (below 2²⁴).
    - `composed` (R, V) float32 is written with z where STORE.
    """
    r = tl.program_id(0).to(tl.int64)  # r · V passes 2³¹
    split = tl.program_id(1)
    heat = tl.load(temperature + r)
    row_seed = tl.load(seed + r)
    m = -float("inf")
    s = 0.0
    moved = 0.0
    m0 = -float("inf")
    s0 = 0.0
    best = -float("inf")
    best_tile = split * tiles  # where no key is larger than −inf
    for tile in range(split * tiles, (split + 1) * tiles):
        offsets = tile * TILE + tl.arange(0, TILE)
        keep = masked_tokens(buffers, stream, sets, tau, r, offsets, V, K, S, DTYPE)
        z, base = tile_scores(
            buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, K, S, RULES, GATED, DTYPE
        )  # fmt: skip
        if S > 0:  # the base's own mass counts the masked tokens too
            base = load_logits(buffers, stream, r * K, offsets, offsets < V, DTYPE)
        if STORE:
            tl.store(composed + r * V + offsets, z, offsets < V)
        before = m
        m, s = add_mass(m, s, z)
        safe = tl.where(m == -float("inf"), 0.0, m)
        difference = tl.where(z == -float("inf"), 0.0, z - base)
        moved = moved * tl.exp(before - safe) + tl.sum(tl.exp(z - safe) * difference, 0)
        m0, s0 = add_mass(m0, s0, base)
        number = tl.full((), 0, tl.int32) + tile  # the interpreter's loop variables are no tensors
        key = _key(z, heat, row_seed, number)
        if key > best:
            best = key
            best_tile = number
    place = part + (r * SPLITS + split) * FIELDS
    tl.store(place, m)
    tl.store(place + 1, s)
    tl.store(place + 2, moved)
    tl.store(place + 3, m0)
    tl.store(place + 4, s0)
    tl.store(place + 5, best)
    tl.store(place + 6, best_tile.to(tl.float32))


@triton.jit
def _base_argmax(buffers, stream, r, V, K, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """The base's most likely token, the lowest of a tie: for rows whose masks leave nothing."""
    best = -float("inf")
    token = 0
    for start in range(0, V, TILE):
        offsets = start + tl.arange(0, TILE)
        x = load_logits(buffers, stream, r * K, offsets, offsets < V, DTYPE)
        top = tl.max(x, 0)
        if top > best:
            best = top
            token = tl.min(tl.where(x == top, offsets, 2147483647), 0)
    return token


@triton.jit
def finish(
    buffers, stream, weight, rule, sets, tau, lse, solved, temperature, seed, forced, part, token_out, report, V,
    SPLITS, K: tl.constexpr, S: tl.constexpr, RULES: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R). `forced` (R,) int64: the token to score, −1 to draw. Writes `token_out` (R,) int64 and `report` (R, 3)
    float32: log-prob of the token, log-sum-exp of z, KL(composed‖base). WIDTH: SPLITS up to a power of two."""
    r = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    inside = lanes < SPLITS
    place = part + (r * SPLITS + lanes) * FIELDS
    parts_m = tl.load(place, inside, -float("inf"))
    m, s = join_mass(parts_m, tl.load(place + 1, inside, 0.0))
    safe = tl.where(m == -float("inf"), 0.0, m)
    moved = tl.sum(tl.load(place + 2, inside, 0.0) * tl.exp(parts_m - safe), 0)
    m0, s0 = join_mass(tl.load(place + 3, inside, -float("inf")), tl.load(place + 4, inside, 0.0))
    keys = tl.load(place + 5, inside, -float("inf"))
    tiles = tl.load(place + 6, inside, 0.0).to(tl.int32)
    best = tl.max(keys, 0)
    tile = tl.min(tl.where(inside & (keys == best), tiles, 2147483647), 0)
    total = log_total(m, s)
    token = tl.load(forced + r)
    is_forced = token >= 0
    empty = total == -float("inf")
    if empty:
        fallback = _base_argmax(buffers, stream, r, V, K, TILE, DTYPE)
        logprob = tl.where(is_forced & (token != fallback), -float("inf"), 0.0)
        token = tl.where(is_forced, token, fallback.to(tl.int64))
        kl = 0.0
    else:
        tile = tl.where(is_forced, (token // TILE).to(tl.int32), tl.where(best == -float("inf"), 0, tile))
        tile = tl.minimum(tile, (V - 1) // TILE)  # no key was larger than −inf: the row holds NaN
        offsets = tile * TILE + tl.arange(0, TILE)
        keep = masked_tokens(buffers, stream, sets, tau, r, offsets, V, K, S, DTYPE)
        z, _base = tile_scores(
            buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, K, S, RULES, GATED, DTYPE
        )  # fmt: skip
        heat = tl.load(temperature + r)
        value = z
        if heat > 0:
            value = z / heat + gumbel(token_seed(tl.load(seed + r)), offsets)
        value = tl.where(offsets < V, value, -float("inf"))
        drawn = tl.min(tl.where(value == tl.max(value, 0), offsets, 2147483647), 0)
        token = tl.where(is_forced, token, tl.minimum(drawn, V - 1).to(tl.int64))
        logprob = tl.sum(tl.where(offsets == token, z, 0.0), 0) - total
        logprob = tl.where(total != total, total, logprob)
        kl = moved / s - total + log_total(m0, s0)
    tl.store(token_out + r, token)
    tl.store(report + r * 3, logprob)
    tl.store(report + r * 3 + 1, total)
    tl.store(report + r * 3 + 2, kl)


@triton.jit
def normalise(
    buffers, stream, composed, report, V, K, TILE: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Grid (R, tiles): `composed` (R, V) −= its log-sum-exp (`report`), in place; a row whose masks leave nothing gets
    its base's arg-max."""
    r = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.load(report + r * 3 + 1)
    place = composed + r * V + offsets
    z = tl.load(place, offsets < V, -float("inf"))
    if total == -float("inf"):
        token = _base_argmax(buffers, stream, r, V, K, TILE, DTYPE)
        z = tl.where(offsets == token, 0.0, z)
    else:
        z = z - total
    tl.store(place, z, offsets < V)
