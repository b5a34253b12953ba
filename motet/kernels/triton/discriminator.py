# type: ignore
"""The filter of GeDi: keep the tokens of the highest s until they hold a share of the mass of softmax(z)."""

import triton
import triton.language as tl

from motet.kernels.triton.columns import DISCRIMINATOR, KIND, MASS, POSTERIOR, RULE
from motet.kernels.triton.load import add_mass, log_total
from motet.kernels.triton.scores import discriminator_logit, tile_scores
from motet.kernels.triton.search import threshold


@triton.jit
def _tokens(offsets, valid, given):
    """s, and the mass under softmax(z): see `search.threshold`."""
    buffers, stream, weight, rule, sets, tau, lse, solved = given[0]
    r, total, PAIRS = given[1]
    K: tl.constexpr = given[2]
    S: tl.constexpr = given[3]
    DTYPE: tl.constexpr = given[4]
    z = tile_scores(
        buffers, stream, weight, rule, sets, tau, lse, solved, r, offsets, valid, PAIRS, K, S, True, False, DTYPE
    )  # fmt: skip
    key = discriminator_logit(buffers, stream, weight, rule, lse, r, offsets, valid, K, DTYPE)
    return key, tl.where(z > -float("inf"), tl.exp(z - total), 0.0)


@triton.jit
def discriminator_threshold(
    buffers, stream, weight, rule, sets, tau, lse, solved, V, PAIRS, K: tl.constexpr, S: tl.constexpr,
    BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The s from which on tokens are kept, in rows of the rule: the kept mass' or the kept posterior's, whichever is
    lower. Grid (R).

    Parameters:
        buffers, stream, weight, rule, sets, tau, lse: tables, see `columns`.
        solved: table, written in its first column; before, it holds −inf there, so that z is weighed unfiltered.
        PAIRS: columns of `solved`.
        K, S: slots and sets of a row.
        DTYPE: see `load.load_logits`.
    """
    r = tl.program_id(0).to(tl.int64)
    if tl.load(rule + r * RULE + KIND).to(tl.int32) == DISCRIMINATOR:
        mass = tl.load(rule + r * RULE + MASS)
        posterior = tl.load(rule + r * RULE + POSTERIOR)
        limit = -float("inf")
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
            tables = (buffers, stream, weight, rule, sets, tau, lse, solved)
            found = threshold(_tokens, (tables, (r, total, PAIRS), K, S, DTYPE), mass, V, BLOCK)
            limit = tl.minimum(found, tl.log(posterior) - tl.log(1.0 - posterior))
        tl.store(solved + r * PAIRS, limit)
