# type: ignore
"""Reading a stream's logits where the model left them: no gather, no stacking copy.

Arrays of a batch (see `table.RowTable`), for R rows with K slots and S sets:

- `buffers` (B, 3) int64: address of a member's logits, elements from row to row, dtype (0 float32, 1 bfloat16,
  2 float16).
- `stream` (R, K, 4) int32: buffer, row in it (−1: the slot is empty), set that gates the term (−1: none), and whether
  the stream must be normalised.
- `weight` (R, K, 2) float32: weight, 1 / temperature.
- `lse` (R, K, 2) float32: maximum and log-sum-exp of logits / temperature, where the stream must be normalised.
"""

import triton
import triton.language as tl


@triton.jit
def only_if(condition, block):
    """`block` (bool) where the scalar `condition` holds, else false. (In the interpreter, `&` of a block and a scalar
    bool gives an int mask.)"""
    return tl.where(condition, block, False)


@triton.jit
def load_logits(buffers, stream, slot, offsets, mask, DTYPE: tl.constexpr):
    """Logits (float32) of one slot at `offsets`, −inf where `mask` is false. `slot` is r · K + k (int64).

    DTYPE 3: the members' dtypes differ; three loads of which two are masked off.
    """
    buffer = tl.load(stream + slot * 4)
    row = tl.load(stream + slot * 4 + 1)
    mask = only_if(row >= 0, mask)
    address = tl.load(buffers + buffer * 3)
    start = row.to(tl.int64) * tl.load(buffers + buffer * 3 + 1)  # row · stride passes 2³¹ at 16,384 rows of 131,072
    if DTYPE == 0:
        x = tl.load(address.to(tl.pointer_type(tl.float32)) + start + offsets, mask, -float("inf"))
    elif DTYPE == 1:
        x = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + start + offsets, mask, -float("inf")).to(tl.float32)
    elif DTYPE == 2:
        x = tl.load(address.to(tl.pointer_type(tl.float16)) + start + offsets, mask, -float("inf")).to(tl.float32)
    else:
        dtype = tl.load(buffers + buffer * 3 + 2)
        ninf = -float("inf")
        a = tl.load(address.to(tl.pointer_type(tl.float32)) + start + offsets, only_if(dtype == 0, mask), ninf)
        b = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + start + offsets, only_if(dtype == 1, mask), ninf)
        c = tl.load(address.to(tl.pointer_type(tl.float16)) + start + offsets, only_if(dtype == 2, mask), ninf)
        x = tl.where(dtype == 0, a, tl.where(dtype == 1, b.to(tl.float32), c.to(tl.float32)))
    return x


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
