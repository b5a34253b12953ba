# type: ignore
"""The N most likely tokens of each row: N arg-max passes over a part of the row, then over the parts' winners."""

import triton
import triton.language as tl

from motet.kernels.triton.load import is_left_out

NONE = tl.constexpr(2147483647)


@triton.jit
def top_tokens(
    values, ids, info, out_values, out_ids, width, chunk, PARTS, COUNT, HAS_IDS: tl.constexpr, ONLY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (R, PARTS): the COUNT largest of `chunk` ≤ BLOCK entries of `values` (R, width) float32, best first, the
    lowest token of a tie first, into `out_*` (R, PARTS, COUNT). Tokens are `ids` (R, width) int32 where HAS_IDS, else
    places."""
    r = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if is_left_out(info, r, ONLY):
        return
    lanes = tl.arange(0, BLOCK)
    offsets = part * chunk + lanes
    mask = (lanes < chunk) & (offsets < width)
    x = tl.load(values + r * width + offsets, mask, -float("inf"))
    token = offsets
    if HAS_IDS:
        token = tl.load(ids + r * width + offsets, mask, NONE)
    token = tl.where(mask, token, NONE)
    for n in range(COUNT):
        best = tl.max(x, 0)
        chosen = tl.min(tl.where(x == best, token, NONE), 0)
        place = (r * PARTS + part) * COUNT + n
        tl.store(out_values + place, best)
        tl.store(out_ids + place, chosen)
        taken = token == chosen
        x = tl.where(taken, -float("inf"), x)
        token = tl.where(taken, NONE, token)
