# type: ignore
"""The packed tables that the kernels read and write, and the names of their columns.

R rows of a step, K slots (streams) and S plausible sets per row, B buffers, G rows with a grammar, V tokens:

    table    shape, dtype            columns
    buffers  (B, BUFFERS) int64      ADDRESS of a member's logits; ROW_STRIDE in elements; ELEMENT type (0 float32, 1
                                     bfloat16, 2 float16)
    stream   (R, K, STREAM) int32    BUFFER; PLACE, the row in it (−1: the slot is empty); GATE, the set of the term
                                     (−1: none); NORMALISED, whether its log-sum-exp is needed
    weight   (R, K, WEIGHT) float32  FACTOR of the term; INVERSE of the temperature
    lse      (R, K, LSE) float32     PEAK and TOTAL: maximum and log-sum-exp of logits / temperature, where NORMALISED
    rule     (R, RULE) float32       KIND (see `layout.Kind`); three places of parameters (see `layout.RuleRows`); three
                                     of state (see `cores.rule_scores`); SOLVES, how many α are reported
    sets     (R, S, SETS) int32      SLOT whose distribution defines the set (−1: unused); SET_KIND; MASKS the row (0:
                                     gates a term); RANK
    value    (R, S) float32          ratio or mass of the set
    tau      (R, S) float32          threshold of the set, on raw logits
    solved   (R, PAIRS) float32      α of each pair of experts, or first the share of stream 1 in a cascade, whether
                                     the streams of a sparse mixture are composed, the
                                     threshold of the discriminator's s, of the divergence's difference
    info     (R, INFO) int32         what the row asks for in this step: TRACED, STORED, …
    words    (G, W) int32            bit masks of grammars, W = ⌈V/32⌉: bit v mod 32 of word ⌊v/32⌋ is token v
    params   (R, PARAMS) float32     TEMPERATURE (0 is greedy), TOP_K, TOP_P, MIN_P
    draw     (R, DRAW) int64         SEED; FORCED, the token that is scored instead of drawn, or −1
    report   (R, REPORT) float32     LOGPROB of the token; LOG_SUM, the log-sum-exp of z; KL from the base
"""

import triton.language as tl

from motet.kernels import layout
from motet.kernels.layout import Kind, Measure


def as_int(column: object) -> int:
    """A width, a column or a code as the host's tensors are indexed by it."""
    return int(column.value)


BUFFERS, ADDRESS, ROW_STRIDE, ELEMENT = map(tl.constexpr, (3, 0, 1, 2))
STREAM, BUFFER, PLACE, GATE, NORMALISED = map(tl.constexpr, (4, 0, 1, 2, 3))
WEIGHT, FACTOR, INVERSE = map(tl.constexpr, (2, 0, 1))
LSE, PEAK, TOTAL = map(tl.constexpr, (2, 0, 1))

RULE, KIND, SOLVES = map(tl.constexpr, (8, 0, 7))
ALPHA = tl.constexpr(1)  # of RELU
OMEGA, MASS, POSTERIOR = map(tl.constexpr, (1, 2, 3))  # of DISCRIMINATOR
ALPHA_MAX, SYMMETRIC_FORM, EPSILON = map(tl.constexpr, (1, 2, 2))  # of DYNAMIC and BUDGET: the second is either's own
CUTOFF = tl.constexpr(1)  # of ROUTED
COUNT = tl.constexpr(1)  # of DIVERGENCE
AGREEMENT = tl.constexpr(1)  # of SPARSE
MEASURE, THRESHOLD, PORTION = map(tl.constexpr, (1, 2, 3))  # of CASCADE
MARGIN, ENTROPY = map(tl.constexpr, (int(Measure.MARGIN), int(Measure.ENTROPY)))
TIE = tl.constexpr(layout.TIE)
STATE = tl.constexpr(4)  # the first of three
WANTED_SUM, UNWANTED_SUM, JUDGED = map(tl.constexpr, (4, 5, 6))  # of DISCRIMINATOR
SHARE = tl.constexpr(4)  # of ROUTED

LINEAR, RELU, MIXTURE = map(tl.constexpr, map(int, (Kind.LINEAR, Kind.RELU, Kind.MIXTURE)))
DISCRIMINATOR, DYNAMIC = map(tl.constexpr, map(int, (Kind.DISCRIMINATOR, Kind.DYNAMIC)))
BUDGET, ROUTED, DIVERGENCE = map(tl.constexpr, map(int, (Kind.BUDGET, Kind.ROUTED, Kind.DIVERGENCE)))
CASCADE, SPARSE = map(tl.constexpr, map(int, (Kind.CASCADE, Kind.SPARSE)))

SETS, SLOT, SET_KIND, MASKS, RANK = map(tl.constexpr, (4, 0, 1, 2, 3))
RATIO, RANK_OR_RATIO, NUCLEUS = map(tl.constexpr, (0, 1, 2))  # kinds of sets
SET_KINDS: dict[str, int] = {"ratio": RATIO.value, "rank_or_ratio": RANK_OR_RATIO.value, "nucleus": NUCLEUS.value}

INFO = tl.constexpr(6)
TRACED = tl.constexpr(0)  # reports KL and the rank under the base
STORED = tl.constexpr(1)  # its composed row is written
FILTERED = tl.constexpr(2)  # drawn after top-k, top-p or min-p
GRAMMAR = tl.constexpr(3)  # row of `words`, −1: none
RELAXED = tl.constexpr(4)  # written on the device: plausible sets give way to the grammar
TOPPED = tl.constexpr(5)  # reports alternatives
ALL = tl.constexpr(-1)  # in the place of a column: a launch is for all rows

PARAMS, TEMPERATURE, TOP_K, TOP_P, MIN_P = map(tl.constexpr, (4, 0, 1, 2, 3))
DRAW, SEED, FORCED = map(tl.constexpr, (2, 0, 1))
REPORT, LOGPROB, LOG_SUM, KL = map(tl.constexpr, (3, 0, 1, 2))
