# type: ignore
"""Whether a row's small model is sure enough to answer: its share of the row (see `cores.confident`)."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import (
    CASCADE,
    ENTROPY,
    KIND,
    LSE,
    MARGIN,
    MEASURE,
    PEAK,
    PORTION,
    RULE,
    THRESHOLD,
    TOTAL,
)
from motet.kernels.triton.load import scaled_logits


@triton.jit
def _second(buffers, stream, weight, slot, V, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """The second largest of logits / temperature; −inf where there is one token alone."""
    first = -float("inf")
    second = -float("inf")
    for start in range(0, V, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = scaled_logits(buffers, stream, weight, slot, offsets, offsets < V, DTYPE)
        here = tl.max(x, 0)
        rest = tl.max(tl.where(offsets == start + tl.argmax(x, 0), -float("inf"), x), 0)
        second = tl.maximum(tl.maximum(second, rest), tl.minimum(first, here))
        first = tl.maximum(first, here)
    return second


@triton.jit
def _entropy(buffers, stream, weight, slot, total, V, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """In nats; `total` is the log-sum-exp."""
    entropy = 0.0
    for start in range(0, V, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = scaled_logits(buffers, stream, weight, slot, offsets, offsets < V, DTYPE) - total
        entropy -= tl.sum(tl.where(x == -float("inf"), 0.0, tl.exp(x) * x), 0)
    return entropy


@triton.jit
def cascade_share(
    buffers, stream, weight, rule, lse, solved, V, PAIRS, K: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stream 1's share in rows of the rule, NaN where the stream is broken. Grid (R).

    Parameters:
        buffers, stream, weight, rule, lse: tables, see `columns`.
        solved: table, written in its first column.
        PAIRS: columns of `solved`.
        K: slots of a row.
        DTYPE: see `load.load_logits`.
    """
    r = tl.program_id(0).to(tl.int64)
    if tl.load(rule + r * RULE + KIND).to(tl.int32) == CASCADE:
        slot = r * K + 1
        measure = tl.load(rule + r * RULE + MEASURE).to(tl.int32)
        threshold = tl.load(rule + r * RULE + THRESHOLD)
        total = tl.load(lse + slot * LSE + TOTAL)
        sure = tl.exp(tl.load(lse + slot * LSE + PEAK) - total)
        if measure == MARGIN:
            sure -= tl.exp(_second(buffers, stream, weight, slot, V, BLOCK, DTYPE) - total)
        if measure == ENTROPY:
            sure = -_entropy(buffers, stream, weight, slot, total, V, BLOCK, DTYPE)
            threshold = -threshold
        share = tl.where(sure >= threshold, tl.load(rule + r * RULE + PORTION), 0.0)
        tl.store(solved + r * PAIRS, tl.where(total != total, total, share))
