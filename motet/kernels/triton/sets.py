# type: ignore
"""Thresholds on raw logits of plausible sets: `composers.plan.TokenSet` on the device, without sorting.

All tokens that tie with the threshold are kept; the oracle keeps a nucleus' ties out by sorted order.
"""

import triton
import triton.language as tl

from motet.kernels.triton.load import load_logits
from motet.kernels.triton.search import add_weights, decide, pivots, unordered

RATIO = tl.constexpr(0)
RANK_OR_RATIO = tl.constexpr(1)
NUCLEUS = tl.constexpr(2)


@triton.jit
def set_thresholds(
    buffers, stream, lse, sets, value, tau, V, K, S, BLOCK: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """Grid (R · S). `value` (R, S) float32: ratio or mass; a rank stands in `sets`. `tau` (R, S) is written."""
    place = tl.program_id(0).to(tl.int64)
    number = tl.load(sets + place * 4)
    if number >= 0:
        slot = place // S * K + number
        kind = tl.load(sets + place * 4 + 1)
        amount = tl.load(value + place)
        total = tl.load(lse + slot * 2 + 1)
        ratio = tl.load(lse + slot * 2) + tl.log(amount)
        threshold = ratio
        if kind != RATIO:
            target = tl.where(kind == NUCLEUS, amount, tl.load(sets + place * 4 + 3).to(tl.float32))  # exact to 2²⁴
            prefix = tl.zeros((), tl.int64)
            step = tl.full((), 268435456, tl.int64)
            for _digit in range(8):
                candidates = pivots(prefix, step)
                above = tl.zeros((16, BLOCK), tl.float32)
                for start in range(0, V, BLOCK):
                    offsets = start + tl.arange(0, BLOCK)
                    x = load_logits(buffers, stream, slot, offsets, offsets < V, DTYPE)
                    w = tl.where(kind == NUCLEUS, tl.exp(x - total), (x > -float("inf")).to(tl.float32))
                    above = add_weights(above, x, w, candidates)
                prefix = decide(above, candidates, target)
                step = step // 16
            found = unordered(prefix)
            threshold = tl.where(kind == NUCLEUS, found, tl.minimum(found, ratio))
            threshold = tl.where((kind == NUCLEUS) & (amount >= 1.0), -float("inf"), threshold)
        tl.store(tau + place, threshold)
