"""The Triton kernels in the interpreter against the float64 oracle.

`tests/conftest.py` switches the interpreter on where there is no GPU; with one, the same tests run compiled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.composers.rules import LinearRule
from motet.kernels.decode import DecodeRows, decode
from motet.kernels.eager import EagerKernels
from motet.kernels.layout import edits
from motet.kernels.logits import Logits
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.backend import TritonKernels
from motet.kernels.triton.table import buffer_table, seeds
from tests.kernels import checks
from tests.kernels.cases import NUM_STREAMS, STATE, logits_of, plans
from tests.kernels.frequencies import FALSE_ALARM, chi_square_p, draws
from tests.kernels.oracle import ATOL, DEVICE, assert_close, both, streams_of

ROWS = len(plans(100))

# −inf · 0 and the like happen in lanes that a `where` then drops; NumPy warns, a GPU does not
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# one of each: a single tile or several, with a last one that is full, nearly empty, or a single token
EXACT = [(vocab, torch.float32) for vocab in (1, 31, 257, 1000)]
HALVES = [(1000, torch.bfloat16), (257, torch.float16)]


@pytest.mark.parametrize(("vocab", "dtype"), [*EXACT, *HALVES])
def test_all_rules_in_one_launch(vocab: int, dtype: torch.dtype) -> None:
    checks.all_rules(vocab, dtype, nuclei=dtype == torch.float32)


def test_a_real_vocabulary() -> None:
    """32,007 is no multiple of anything; one row of each rule that reads its tiles differently."""
    chosen = [plans(32_007)[i] for i in (0, 3, 6, 8)]
    assert_close(*both(logits_of(4, 32_007, torch.float32), chosen, streams_of(chosen, 4)))


def test_members_of_unlike_dtypes_and_strides() -> None:
    checks.unlike_members()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), vocab=st.sampled_from([1, 31, 257]), seed=st.integers(0, 1000))
def test_any_weights_and_rows(data: st.DataObject, vocab: int, seed: int) -> None:
    number = st.floats(-2, 2, width=32)
    chosen: list[Plan] = []
    for _ in range(data.draw(st.integers(1, 4))):
        weights = data.draw(st.lists(number, min_size=0, max_size=4))
        terms = [Stream(f"s{k}", "m", w, temperature=data.draw(st.floats(0.5, 2))) for k, w in enumerate(weights)]
        masks = (TokenSet(0, "ratio", data.draw(st.floats(1e-3, 1))),) if data.draw(st.booleans()) else ()
        chosen.append(Plan((Stream("base", "m"), *terms), masks))
    rows = st.integers(0, 3 * NUM_STREAMS - 1)
    streams = [[data.draw(rows) for _ in plan.streams] for plan in chosen]
    buffers = logits_of(3, vocab, torch.float32, seed)
    got, oracle = both(buffers, chosen, streams)
    assert_close(got, oracle)


def test_impossible_tokens_and_empty_rows() -> None:
    checks.impossible_tokens()


def test_a_broken_member_stays_visible_in_its_own_rows_only() -> None:
    checks.broken_member()


def test_ties_with_a_threshold_are_all_kept() -> None:
    chosen = [Plan((Stream("base", "m"),), masks=(TokenSet(0, "nucleus", 0.6),))]
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -3.0]])
    got, _ = both([logits], chosen, [(0,)])
    assert (got.logprobs[0] > -math.inf).tolist() == [True, True, True, True, False, False]


def rows_for(
    logits: Logits, chosen: Sequence[Plan], params: SampleRows, uniform: Sequence[float], forced: Sequence[int]
) -> DecodeRows:
    plan = compose_rows(chosen, streams_of(chosen, len(chosen)), logits.like())
    state = torch.tensor([STATE] * len(chosen), device=DEVICE)
    return DecodeRows(plan, forced, params, uniform, state)


@pytest.mark.parametrize(
    ("vocab", "forced"),
    [(1, [-1, 0]), (257, [-1]), (257, [128]), (1100, [-1, 550]), (1100, [1099, -1])],
    ids=["one token", "greedy", "forced", "every second, two tiles", "the others, two tiles"],
)
def test_greedy_and_forced_tokens(vocab: int, forced: list[int]) -> None:
    checks.greedy_and_forced(vocab, forced)


def test_reported_divergence_from_the_base() -> None:
    checks.traces(1500)


def test_the_split_of_the_vocabulary_changes_no_token() -> None:
    checks.splits(5000, 4)


def test_a_row_is_decoded_alike_alone_and_in_company() -> None:
    checks.company(300)


# tokens and rows: a filtered row costs dozens of passes in the interpreter
WARPS = [(checks.Warp(0.7, 0, 1.0, 0.0), 2500, 150), (checks.Warp(0.9, 10, 0.8, 0.05), 300, 100)]


@pytest.mark.parametrize(("case", "vocab", "rows"), WARPS)
def test_frequencies(case: checks.Warp, vocab: int, rows: int) -> None:
    checks.frequencies(case, vocab, rows)


def test_a_wrong_distribution_is_noticed() -> None:
    scores = torch.linspace(-4, 4, 40)[None]
    params = SampleRows([2.0] * 200, [0] * 200, [1.0] * 200, [0.0] * 200)
    tokens = TritonKernels().sample(scores.to(DEVICE).expand(200, -1), params, draws(200, 4)).cpu()
    probs = scores.double().softmax(-1)[0].numpy()
    assert chi_square_p(np.bincount(tokens.numpy(), minlength=40), probs) < FALSE_ALARM


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    top_k=st.integers(0, 80),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    temperature=st.floats(0.3, 2.0),
    seed=st.integers(0, 1000),
)
def test_thresholds_keep_what_the_oracle_keeps(
    top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    checks.thresholds(checks.Warp(temperature, top_k, top_p, min_p), 600, seed)


@pytest.mark.parametrize(("vocab", "count"), [(1, 1), (300, 5), (9000, 20)])
def test_top_tokens(vocab: int, count: int) -> None:
    checks.alternatives(vocab, count)


def test_edited_rows_go_through_the_same_steps() -> None:
    chosen = plans(200)[:4]
    logits = Logits([buffer.to(DEVICE) for buffer in logits_of(4, 200, torch.float32)])
    like = logits.like()
    rows = DecodeRows(
        plan=compose_rows(chosen, streams_of(chosen, 4), like),
        forced=[-1, -1, 7, -1],
        sampling=SampleRows([0.0] * 4, [0] * 4, [1.0] * 4, [0.0] * 4),
        uniform=[1.0] * 4,
        rules=edits([(0, 5, 3.0), (2, 7, -1.0)], like),
        banned=edits([(1, 9, 0.0)], like),
        bias=edits([(3, 11, 4.0)], like),
        repetition=edits([(0, 5, 1.3)], like),
        top=[4] * 4,
    )
    got, expected = decode(TritonKernels(), logits, rows), decode(EagerKernels(), logits, rows)
    assert torch.equal(got.token, expected.token)
    assert got.top_tokens is not None
    assert expected.top_tokens is not None
    assert torch.equal(got.top_tokens, expected.top_tokens)
    torch.testing.assert_close(got.top_values, expected.top_values, atol=ATOL, rtol=1e-4)
    torch.testing.assert_close(got.logprob, expected.logprob, atol=ATOL, rtol=1e-4)


def test_a_table_is_built_once_per_batch() -> None:
    chosen = [Plan((Stream("base", "m"),), rule=LinearRule())]
    logits = Logits(logits_of(1, 20, torch.float32))
    plan = compose_rows(chosen, [(0,)], logits.like())
    kernels = TritonKernels()
    rows = rows_for(logits, chosen, SampleRows([0.0], [0], [1.0], [0.0]), [1.0], [-1])
    first = kernels.stage(logits, replace(rows, plan=plan)).batch.table
    assert kernels.stage(logits, replace(rows, plan=plan)).batch.table is first
    again = compose_rows(chosen, [(1,)], logits.like())
    assert kernels.stage(logits, replace(rows, plan=again)).batch.table is not first


def test_layouts_that_the_kernels_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        buffer_table([torch.zeros(1, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="next to one another"):
        buffer_table([torch.zeros(4, 4)[:, ::2]])


def test_seeds_use_the_whole_draw() -> None:
    generator = random.Random(0)
    uniform = [1.0 - generator.random() for _ in range(1000)]
    values = seeds(uniform)
    assert len(set(values)) == 1000
    assert min(values) >= 0
