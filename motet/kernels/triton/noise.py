# type: ignore
"""Gumbel noise from Philox, one stream per row and step.

The token of a row is drawn in two steps: a tile of 1,024 tokens by its log-sum-exp plus one Gumbel, then the token in
the tile by score plus Gumbel, which is the same distribution as one Gumbel per token at a thousandth of the noise.
`TILE` defines the random stream: with another tile the same seed gives other tokens.
"""

import triton
import triton.language as tl

TILE = 1024


@triton.jit
def gumbel(seed, counter):
    """−log(−log u), u from all 32 bits: finite for every draw, and its upper tail reaches 22.9, not 16.6."""
    bits = tl.randint(seed, counter).to(tl.uint32, bitcast=True)
    low = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # u
    high = ((~bits).to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 1 − u, exact where u rounds to 1
    series = high * (1.0 + high * (0.5 + high * (0.33333334 + high * 0.25)))  # −log1p(−h), h < 2⁻⁶: 1e-8 relative
    near_one = tl.where(high < 0.015625, series, -tl.log(tl.maximum(1.0 - high, 1e-30)))
    exponential = tl.where(low < 0.5, -tl.log(low), near_one)
    return -tl.log(exponential)


@triton.jit
def token_seed(seed):
    """Seed of the draws inside a tile: independent of those among tiles."""
    return seed ^ 0x5851F42D4C957F2D
