# type: ignore
"""Maximum and log-sum-exp of the streams that must be normalised: one read of those, none of the others."""

import triton
import triton.language as tl

from motet.kernels.triton.load import add_mass, join_mass, load_logits, log_total


@triton.jit
def stats_part(buffers, stream, weight, part, V, tiles, K, SPLITS, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Grid (R · K, SPLITS): `part` (R · K, SPLITS, 2) float32 gets (maximum, Σ exp) of `tiles` tiles per program."""
    slot = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if tl.load(stream + slot * 4 + 3) != 0:
        inverse = tl.load(weight + slot * 2 + 1)
        m = -float("inf")
        s = 0.0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * TILE + tl.arange(0, TILE)
            x = load_logits(buffers, stream, slot, offsets, offsets < V, DTYPE)
            m, s = add_mass(m, s, x * inverse)
        place = part + (slot * SPLITS + split) * 2
        tl.store(place, m)
        tl.store(place + 1, s)


@triton.jit
def stats_end(stream, part, lse, SPLITS, WIDTH: tl.constexpr):
    """Grid (R · K): `lse` (R · K, 2) float32 gets (maximum, log-sum-exp). WIDTH: SPLITS up to a power of two."""
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(stream + slot * 4 + 3) != 0:
        lanes = tl.arange(0, WIDTH)
        place = part + (slot * SPLITS + lanes) * 2
        m = tl.load(place, lanes < SPLITS, -float("inf"))
        s = tl.load(place + 1, lanes < SPLITS, 0.0)
        m, s = join_mass(m, s)
        tl.store(lse + slot * 2, m)
        total = log_total(m, s)
        tl.store(lse + slot * 2 + 1, tl.where(total == -float("inf"), 0.0, total))
