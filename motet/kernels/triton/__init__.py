"""The kernels in Triton: rows of different rules, weights, masks and sampling parameters in one launch.

Checked against the oracle in Triton's interpreter and compiled ahead of time for sm_90 without spills. Not yet run on a
GPU: speed, and behaviour that only the hardware shows, are unverified.

A step needs at most the launches that the mathematics forces, each because it reads what the one before has summed
over the whole vocabulary:

1. `stats`: log-sum-exp and maximum of the streams that must be normalised (gates, rules, plausible sets); no row of a
   plain weighted sum needs it.
2. `sets`: thresholds of plausible sets; a rank or a mass is known only when the whole row has been counted.
3. `alpha`: three grid passes and their end, for rows that solve for a strength; `discriminator`: its filter.
4. `decode`: scan and finish. The scan composes, masks and sums; the token is known when all parts are.
5. For rows with top-k, top-p or min-p: `warp` finds one threshold, then scan and finish once more over the row.
"""
