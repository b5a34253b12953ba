# type: ignore
"""Reading a stream's logits where the model left them (no gather, no stacking copy), and online log-sum-exps.

Tables and their columns: see `columns`.
"""

import triton
import triton.language as tl

from motet.kernels.triton.columns import (
    ADDRESS,
    BUFFER,
    BUFFERS,
    ELEMENT,
    INFO,
    INVERSE,
    PLACE,
    ROW_STRIDE,
    STREAM,
    WEIGHT,
)


@triton.jit
def is_left_out(info, r, ONLY: tl.constexpr):
    """Whether a launch for the rows that have something in column ONLY (−1: for all) has nothing to do for row r."""
    return tl.load(info + r * INFO + ONLY) == 0 if ONLY >= 0 else False


@triton.jit
def only_if(condition, block):
    """`block` (bool) where the scalar `condition` holds, else false. (In the interpreter, `&` of a block and a scalar
    bool gives an int mask.)"""
    return tl.where(condition, block, False)


@triton.jit
def load_logits(buffers, stream, slot, offsets, mask, DTYPE: tl.constexpr):
    """Logits (float32) of one slot at `offsets`, −inf where `mask` is false. `slot` is r · K + k (int64).

    DTYPE: 0 float32, 1 bfloat16, 2 float16; 3: the members' dtypes differ, three loads of which two are masked off;
    plus 4 where every row starts at a multiple of 16 bytes and of eight tokens.
    """
    KIND: tl.constexpr = DTYPE % 4
    ALIGNED: tl.constexpr = DTYPE >= 4
    ninf = -float("inf")
    buffer = tl.load(stream + slot * STREAM + BUFFER)
    row = tl.load(stream + slot * STREAM + PLACE)
    mask = only_if(row >= 0, mask)
    address = tl.load(buffers + buffer * BUFFERS + ADDRESS)
    # row · stride passes 2³¹ at 16,384 rows of 131,072
    start = row.to(tl.int64) * tl.load(buffers + buffer * BUFFERS + ROW_STRIDE)
    # alignment is declared of values made here: the compiler forgets it of arguments
    start = tl.multiple_of(start, 8) if ALIGNED else start
    if KIND == 0:
        p = address.to(tl.pointer_type(tl.float32))
        p = tl.multiple_of(p, 16) if ALIGNED else p
        x = tl.load(p + start + offsets, mask, ninf)
    elif KIND == 1:
        p = address.to(tl.pointer_type(tl.bfloat16))
        p = tl.multiple_of(p, 16) if ALIGNED else p
        x = tl.load(p + start + offsets, mask, ninf).to(tl.float32)
    elif KIND == 2:
        p = address.to(tl.pointer_type(tl.float16))
        p = tl.multiple_of(p, 16) if ALIGNED else p
        x = tl.load(p + start + offsets, mask, ninf).to(tl.float32)
    else:
        dtype = tl.load(buffers + buffer * BUFFERS + ELEMENT)
        p = address.to(tl.pointer_type(tl.float32))
        q = address.to(tl.pointer_type(tl.bfloat16))
        h = address.to(tl.pointer_type(tl.float16))
        if ALIGNED:
            p = tl.multiple_of(p, 16)
            q = tl.multiple_of(q, 16)
            h = tl.multiple_of(h, 16)
        a = tl.load(p + start + offsets, only_if(dtype == 0, mask), ninf)
        b = tl.load(q + start + offsets, only_if(dtype == 1, mask), ninf)
        c = tl.load(h + start + offsets, only_if(dtype == 2, mask), ninf)
        x = tl.where(dtype == 0, a, tl.where(dtype == 1, b.to(tl.float32), c.to(tl.float32)))
    return x


@triton.jit
def scaled_logits(buffers, stream, weight, slot, offsets, mask, DTYPE: tl.constexpr):
    """The same at the slot's temperature."""
    x = load_logits(buffers, stream, slot, offsets, mask, DTYPE)
    return x * tl.load(weight + slot * WEIGHT + INVERSE)


@triton.jit
def add_mass(m, s, x):
    """Online log-sum-exp: (maximum, Σ exp(x − maximum)) with the block `x` added. NaN in `x` makes s NaN."""
    clean = tl.where(x != x, -float("inf"), x)  # a maximum skips NaN on some versions only
    top = tl.maximum(m, tl.max(clean, 0))
    safe = tl.where(top == -float("inf"), 0.0, top)  # −inf − (−inf) would be NaN
    s = s * tl.exp(m - safe) + tl.sum(tl.exp(x - safe), 0)
    return top, s


@triton.jit
def log_total(m, s):
    """Log-sum-exp from `add_mass`; −inf where nothing had any mass."""
    return tl.where(m == -float("inf"), tl.where(s != s, s, m), m + tl.log(s))


@triton.jit
def join_mass(m, s):
    """(maximum, sum) of parts (n,): always in the same order, so that a split vocabulary is deterministic."""
    top = tl.max(m, 0)
    safe = tl.where(top == -float("inf"), 0.0, top)
    return top, tl.sum(s * tl.exp(m - safe), 0)
