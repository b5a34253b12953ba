# type: ignore
"""Maximum and log-sum-exp of the streams that must be normalised: one read of those, none of the others."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import INVERSE, LSE, NORMALISED, PEAK, STREAM, TOTAL, WEIGHT
from motet.kernels.triton.load import add_mass, join_mass, load_logits, log_total

PART, PART_MAX, PART_SUM = map(tl.constexpr, (2, 0, 1))  # columns of `part`


@triton.jit
def stats_part(buffers, stream, weight, part, V, tiles, K, SPLITS, TILE: tl.constexpr, DTYPE: tl.constexpr):
    """Sums of a part of every stream that must be normalised. Grid (R · K, SPLITS).

    Parameters:
        buffers, stream, weight: tables, see `columns`.
        part: (R · K, SPLITS, PART) float32, written: maximum and Σ exp(x − maximum) of x = logits / temperature.
        tiles: of TILE tokens, per program.
        K: slots of a row.
        DTYPE: see `load.load_logits`.
    """
    slot = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    if tl.load(stream + slot * STREAM + NORMALISED) != 0:
        inverse = tl.load(weight + slot * WEIGHT + INVERSE)
        m = -float("inf")
        s = 0.0
        for tile in range(split * tiles, (split + 1) * tiles):
            offsets = tile * TILE + tl.arange(0, TILE)
            x = load_logits(buffers, stream, slot, offsets, offsets < V, DTYPE)
            m, s = add_mass(m, s, x * inverse)
        place = part + (slot * SPLITS + split) * PART
        tl.store(place + PART_MAX, m)
        tl.store(place + PART_SUM, s)


@triton.jit
def stats_end(stream, part, lse, SPLITS, WIDTH: tl.constexpr):
    """Log-sum-exps from the parts, always in the same order. Grid (R · K).

    Parameters:
        stream: table, see `columns`.
        part: (R · K, SPLITS, PART) float32, of `stats_part`.
        lse: table, written where a stream must be normalised.
        WIDTH: SPLITS up to a power of two.
    """
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(stream + slot * STREAM + NORMALISED) != 0:
        lanes = tl.arange(0, WIDTH)
        place = part + (slot * SPLITS + lanes) * PART
        m = tl.load(place + PART_MAX, lanes < SPLITS, -float("inf"))
        s = tl.load(place + PART_SUM, lanes < SPLITS, 0.0)
        m, s = join_mass(m, s)
        tl.store(lse + slot * LSE + PEAK, m)
        total = log_total(m, s)
        tl.store(lse + slot * LSE + TOTAL, tl.where(total == -float("inf"), 0.0, total))
