# type: ignore
"""Whether the streams of a sparse mixture disagree, and so are composed (see `cores.disagree`)."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import AGREEMENT, FACTOR, KIND, LSE, PEAK, RULE, SPARSE, TOTAL, WEIGHT
from motet.kernels.triton.load import scaled_logits


@triton.jit
def _most_likely(buffers, stream, weight, slot, V, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """The first of a stream's most likely tokens."""
    most = -float("inf")
    token = 0
    for start in range(0, V, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = scaled_logits(buffers, stream, weight, slot, offsets, offsets < V, DTYPE)
        here = tl.max(x, 0)
        token = tl.where(here > most, start + tl.argmax(x, 0), token)
        most = tl.maximum(most, here)
    return token


@triton.jit
def sparse_disagreement(
    buffers, stream, weight, rule, lse, solved, V, PAIRS, K: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """1 in rows of the rule whose streams disagree, 0 where they agree, NaN where one is broken. Grid (R).

    Parameters:
        buffers, stream, weight, rule, lse: tables, see `columns`.
        solved: table, written in its first column.
        PAIRS: columns of `solved`.
        K: slots of a row.
        DTYPE: see `load.load_logits`.
    """
    r = tl.program_id(0).to(tl.int64)
    if tl.load(rule + r * RULE + KIND).to(tl.int32) == SPARSE:
        token = _most_likely(buffers, stream, weight, r * K, V, BLOCK, DTYPE)
        lane = tl.arange(0, 1)
        mass = tl.zeros((1,), tl.float32)
        weights = 0.0
        others = tl.zeros((1,), tl.int32)  # streams that find another token likelier
        for k in tl.static_range(K):
            slot = r * K + k
            w = tl.load(weight + slot * WEIGHT + FACTOR)
            if w > 0:
                x = scaled_logits(buffers, stream, weight, slot, token + lane, lane == 0, DTYPE)
                mass += w * tl.exp(x - tl.load(lse + slot * LSE + TOTAL))
                others += (x < tl.load(lse + slot * LSE + PEAK)).to(tl.int32)
                weights += w
        agree = (others == 0) | (mass > tl.load(rule + r * RULE + AGREEMENT) * weights)
        tl.store(solved + r * PAIRS + lane, tl.where(mass != mass, mass, tl.where(agree, 0.0, 1.0)))
