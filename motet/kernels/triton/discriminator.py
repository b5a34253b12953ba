# type: ignore
"""The filter of GeDi: keep the tokens of the highest s until they hold a share of the mass of softmax(z)."""

import triton
import triton.language as tl

from motet.kernels.triton.load import add_mass, log_total
from motet.kernels.triton.scores import DISCRIMINATOR, discriminator_logit, tile_scores
from motet.kernels.triton.search import add_weights, decide, pivots, unordered


@triton.jit
def discriminator_threshold(
    buffers, stream, weight, rule, sets, tau, lse, solved, V, PAIRS, K: tl.constexpr, S: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (R). Writes to `solved` (R, PAIRS) the s from which on tokens are kept, for rows of that rule: the kept
    mass' or the kept posterior's, whichever is lower. Before, `solved` holds −inf there, so that z is weighed
    unfiltered."""
    r = tl.program_id(0).to(tl.int64)
    if tl.load(rule + r * 8).to(tl.int32) == DISCRIMINATOR:
        mass = tl.load(rule + r * 8 + 2)
        posterior = tl.load(rule + r * 8 + 3)
        threshold = -float("inf")
        if mass < 1.0:
            m = -float("inf")
            s = 0.0
            for start in range(0, V, BLOCK):
                offsets = start + tl.arange(0, BLOCK)
                z = tile_scores(
                    buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, offsets < V, PAIRS, K, S, True,
                    False, DTYPE,
                )  # fmt: skip
                m, s = add_mass(m, s, z)
            total = log_total(m, s)
            prefix = tl.zeros((), tl.int64)
            step = tl.full((), 268435456, tl.int64)
            for _digit in range(8):
                candidates = pivots(prefix, step)
                above = tl.zeros((16, BLOCK), tl.float32)
                for start in range(0, V, BLOCK):
                    offsets = start + tl.arange(0, BLOCK)
                    keep = offsets < V
                    z = tile_scores(
                        buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, keep, PAIRS, K, S, True,
                        False, DTYPE,
                    )  # fmt: skip
                    key = discriminator_logit(buffers, stream, rule, lse, r, offsets, keep, K, DTYPE)
                    w = tl.where(z > -float("inf"), tl.exp(z - total), 0.0)
                    above = add_weights(above, key, w, candidates)
                prefix = decide(above, candidates, mass)
                step = step // 16
            threshold = tl.minimum(unordered(prefix), tl.log(posterior) - tl.log(1.0 - posterior))
        tl.store(solved + r * PAIRS, threshold)
