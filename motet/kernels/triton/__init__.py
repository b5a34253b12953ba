"""The kernels in Triton: rows of different rules, weights, masks and sampling parameters in one launch.

Checked against the oracle in Triton's interpreter and compiled ahead of time for sm_90 without spills. Not yet run on a
GPU: speed, and behaviour that only the hardware shows, are unverified.

A step needs at most the launches that the mathematics forces, each because it reads what the one before has summed
over the whole vocabulary:

1. `stats`: log-sum-exp and maximum of the streams that must be normalised (gates, rules, plausible sets); no row of a
   plain weighted sum needs it.
2. `sets`: thresholds of plausible sets; a rank or a mass is known only when the whole row has been counted.
3. `alpha`: what is to be matched, then three grid passes and their ends, for rows that solve for a strength;
   `cascade`, `sparse`: who answers; `discriminator` and `divergence`: their filters.
4. `decode`: scan and finish. The scan composes, masks and sums; the token is known when all parts are.
5. Where a row has a grammar and some row a plausible set: `relax` marks the rows of which nothing is left (the sum of
   the scan), and those alone are scanned again without their sets.
6. For rows with top-k, top-p or min-p: `warp` finds one threshold, then scan and finish once more over the row.
7. For traced rows: `base_rank` counts what the base likes more than the token, which must be known.

`sets`, `discriminator`, `divergence` and `warp` take one program per row: each of a search's eight passes counts above
pivots that the pass before has chosen over the whole row, so that splitting a row over programs would make eight
launches of one. `cascade` and `sparse` do too: they read one stream once.
"""
