# type: ignore
"""Thresholds on raw logits of plausible sets: `composers.plan.TokenSet` on the device, without sorting.

All tokens that tie with the threshold are kept; the oracle keeps a nucleus' ties out by sorted order.
"""

import triton
import triton.language as tl

from motet.kernels.triton.columns import LSE, NUCLEUS, PEAK, RANK, RATIO, SET_KIND, SETS, SLOT, TOTAL
from motet.kernels.triton.load import load_logits
from motet.kernels.triton.search import threshold


@triton.jit
def _tokens(offsets, valid, given):
    """Logits, and masses of a nucleus or ones: see `search.threshold`."""
    buffers, stream, slot, kind, total = given[0], given[1], given[2], given[3], given[4]
    x = load_logits(buffers, stream, slot, offsets, valid, given[5])
    return x, tl.where(kind == NUCLEUS, tl.exp(x - total), (x > -float("inf")).to(tl.float32))


@triton.jit
def set_thresholds(
    buffers, stream, lse, sets, value, tau, V, K, S, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Thresholds of all sets. Grid (R · S).

    Parameters:
        buffers, stream, lse, sets, value: tables, see `columns`. A rank above 2²⁴ would not be exact.
        tau: table, written where a set is used.
        K, S: slots and sets of a row.
        DTYPE: see `load.load_logits`.
    """
    place = tl.program_id(0).to(tl.int64)
    number = tl.load(sets + place * SETS + SLOT)
    if number >= 0:
        slot = place // S * K + number
        kind = tl.load(sets + place * SETS + SET_KIND)
        amount = tl.load(value + place)
        total = tl.load(lse + slot * LSE + TOTAL)
        ratio = tl.load(lse + slot * LSE + PEAK) + tl.log(amount)
        limit = ratio
        if kind != RATIO:
            target = tl.where(kind == NUCLEUS, amount, tl.load(sets + place * SETS + RANK).to(tl.float32))
            found = threshold(_tokens, (buffers, stream, slot, kind, total, DTYPE), target, V, BLOCK)
            limit = tl.where(kind == NUCLEUS, found, tl.minimum(found, ratio))
            limit = tl.where((kind == NUCLEUS) & (amount >= 1.0), -float("inf"), limit)
        tl.store(tau + place, limit)
