"""The Triton kernels in the interpreter against the float64 oracle.

`tests/conftest.py` switches the interpreter on where there is no GPU; with one, the same tests run compiled.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.composers.rules import LinearRule
from motet.kernels.decode import Decoded, DecodeRows, decode
from motet.kernels.eager import EagerKernels
from motet.kernels.layout import edits
from motet.kernels.logits import Logits
from motet.kernels.reference import warp
from motet.kernels.sampling import SampleRows
from motet.kernels.triton import launch
from motet.kernels.triton.backend import TritonKernels
from motet.kernels.triton.table import buffer_table, seeds
from motet.kernels.triton.workspace import Workspace, staged_scores
from tests.kernels.cases import NUM_STREAMS, STATE, logits_of, plans
from tests.kernels.frequencies import FALSE_ALARM, chi_square_p, draws
from tests.kernels.oracle import ATOL, DEVICE, assert_close, both, has_nucleus, streams_of

ROWS = len(plans(100))

# −inf · 0 and the like happen in lanes that a `where` then drops; NumPy warns, a GPU does not
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


# one of each: a single tile or several, with a last one that is full, nearly empty, or a single token
EXACT = [(vocab, torch.float32) for vocab in (1, 31, 257, 1000)]
HALVES = [(1000, torch.bfloat16), (257, torch.float16)]


@pytest.mark.parametrize(("vocab", "dtype"), [*EXACT, *HALVES])
def test_all_rules_in_one_launch(vocab: int, dtype: torch.dtype) -> None:
    chosen = plans(vocab)
    if dtype != torch.float32:  # their tokens tie, and the kernels keep what ties with the edge of a nucleus
        chosen = [plan for plan in chosen if not has_nucleus(plan)]
    rows = len(chosen)
    assert_close(*both(logits_of(rows, vocab, dtype), chosen, streams_of(chosen, rows)))


def test_a_real_vocabulary() -> None:
    """32,007 is no multiple of anything; one row of each rule that reads its tiles differently."""
    chosen = [plans(32_007)[i] for i in (0, 3, 6, 8)]
    assert_close(*both(logits_of(4, 32_007, torch.float32), chosen, streams_of(chosen, 4)))


def test_members_of_unlike_dtypes_and_strides() -> None:
    chosen = [plan for plan in plans(100) if not has_nucleus(plan)]
    rows = len(chosen)
    a, b, c, d, e = logits_of(rows, 130, torch.float32)
    buffers = [a[:, 7:107], b[:, :100].bfloat16(), c[:, 30:].half(), d[:, :100], e[:, :100]]
    assert buffer_table(buffers)[1] == 3
    assert_close(*both(buffers, chosen, streams_of(chosen, rows)))


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
    """−inf in every member; one row whose members exclude each other keeps its base's arg-max."""
    chosen = plans(300)
    buffers = logits_of(ROWS, 300, torch.float32)
    buffers[0][:, 3] = buffers[1][:, 4] = buffers[2][:, 5] = -math.inf
    buffers[0][1, 2:] = -math.inf
    buffers[1][1, :2] = buffers[2][1, :2] = -math.inf
    got, oracle = both(buffers, chosen, streams_of(chosen, ROWS))
    assert_close(got, oracle)
    assert got.logprobs[1].argmax() == buffers[0][1].argmax()


def test_a_broken_member_stays_visible_in_its_own_rows_only() -> None:
    chosen = plans(50)[:4]
    buffers = logits_of(4, 50, torch.float32)
    buffers[0][3] = math.nan
    got, _ = both(buffers, chosen, streams_of(chosen, 4))
    assert got.logprobs[3].isnan().all()
    assert got.logprobs[:3].isfinite().all()


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


def decoded_both(temperature: float, forced: Sequence[int], vocab: int, step: int = 1) -> tuple[Decoded, Decoded]:
    """(kernels, plain torch) on every `step`-th of the plans; the forced tokens are taken in turn."""
    chosen = plans(vocab)[::step]
    count = len(chosen)
    logits = Logits([buffer.to(DEVICE) for buffer in logits_of(count, vocab, torch.float32)])
    params = SampleRows([temperature] * count, [0] * count, [1.0] * count, [0.0] * count)
    rows = rows_for(logits, chosen, params, draws(count, 3), list(islice(cycle(forced), count)))
    return decode(TritonKernels(), logits, rows), decode(EagerKernels(), logits, rows)


@pytest.mark.parametrize(
    ("vocab", "forced"),
    [(1, [-1, 0]), (257, [-1]), (257, [128]), (1100, [-1, 550]), (1100, [1099, -1])],
    ids=["one token", "greedy", "forced", "every second, two tiles", "the others, two tiles"],
)
def test_greedy_and_forced_tokens_are_those_of_plain_torch(vocab: int, forced: list[int]) -> None:
    got, expected = decoded_both(0.0, forced, vocab)
    assert torch.equal(got.token, expected.token)
    torch.testing.assert_close(got.logprob, expected.logprob, atol=ATOL, rtol=1e-4)


def test_reported_divergence_from_the_base() -> None:
    """KL and rank of every second row; the others are not looked at."""
    chosen = plans(1500)
    logits = Logits([buffer.to(DEVICE) for buffer in logits_of(ROWS, 1500, torch.float32)])
    params = SampleRows([0.0] * ROWS, [0] * ROWS, [1.0] * ROWS, [0.0] * ROWS)
    forced = [(97 * r) % 1500 if r % 4 else -1 for r in range(ROWS)]
    rows = replace(rows_for(logits, chosen, params, [1.0] * ROWS, forced), trace=range(0, ROWS, 2))
    got, expected = decode(TritonKernels(), logits, rows), decode(EagerKernels(), logits, rows)
    assert got.kl is not None
    assert expected.kl is not None
    assert int(got.kl.isnan().sum()) == ROWS // 2
    torch.testing.assert_close(got.kl, expected.kl, atol=ATOL, rtol=1e-4, equal_nan=True)
    assert got.base_rank is not None
    assert expected.base_rank is not None
    assert torch.equal(got.base_rank, expected.base_rank)


def test_the_split_of_the_vocabulary_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[Tensor] = []
    for programs in (1, 64, 512):
        monkeypatch.setattr(launch, "PROGRAMS", programs)
        tokens.append(decoded_both(0.9, [-1], 5000, 4)[0].token)
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])


def test_a_row_is_decoded_alike_alone_and_in_company() -> None:
    chosen = plans(300)[:4]
    buffers = [buffer.to(DEVICE) for buffer in logits_of(4, 300, torch.float32)]
    params = SampleRows([0.8] * 4, [0] * 4, [1.0] * 4, [0.0] * 4)
    uniform = draws(4, 9)
    logits = Logits(buffers)
    together = decode(TritonKernels(), logits, rows_for(logits, chosen, params, uniform, [-1] * 4)).token
    for r in range(4):
        alone = Logits([buffer[r : r + 1] for buffer in buffers])
        rows = rows_for(alone, [chosen[r]], params.select([r]), [uniform[r]], [-1])
        assert decode(TritonKernels(), alone, rows).token.item() == together[r].item()


# temperature, top-k, top-p, min-p; tokens and rows: a filtered row costs dozens of passes in the interpreter
WARPS: list[tuple[float, int, float, float, int, int]] = [
    (0.7, 0, 1.0, 0.0, 2500, 150),
    (0.9, 10, 0.8, 0.05, 300, 100),
]


@pytest.mark.parametrize("case", WARPS)
def test_frequencies(case: tuple[float, int, float, float, int, int]) -> None:
    """Chi-square at a false-alarm rate of 1e-6, over up to three tiles."""
    *_, vocab, rows = case
    generator = torch.Generator().manual_seed(1)
    scores = torch.full((1, vocab), -math.inf)
    places = torch.randperm(vocab, generator=generator)[:20]
    scores[0, places] = 1.5 * torch.randn(20, generator=generator)
    params = SampleRows([case[0]] * rows, [case[1]] * rows, [case[2]] * rows, [case[3]] * rows)
    tokens = TritonKernels().sample(scores.to(DEVICE).expand(rows, -1), params, draws(rows, 4)).cpu()
    as_double = [torch.tensor([value], dtype=torch.float64) for value in (case[0], case[2], case[3])]
    probs = warp(scores.double(), as_double[0], torch.tensor([case[1]]), as_double[1], as_double[2])[0].numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    assert counts[probs == 0].sum() == 0, "a filtered or impossible token was drawn"
    assert chi_square_p(counts, probs) > FALSE_ALARM


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
    scores = 2 * torch.randn(1, 600, generator=torch.Generator().manual_seed(seed))
    params = SampleRows([temperature], [top_k], [top_p], [min_p])
    batch = staged_scores(Workspace(DEVICE), scores.to(DEVICE), params, [1.0])
    tau = launch.thresholds(batch, scores.to(DEVICE))
    columns = batch.params.cpu().double().unbind(-1)
    kept = warp(scores.double(), columns[0], columns[1].long(), columns[2], columns[3]) > 0
    got = scores >= tau.cpu()
    assert abs(int(got.sum()) - int(kept.sum())) <= 1, "rounding decides about one token at most"
    assert int((got != kept).sum()) <= 1


@pytest.mark.parametrize(("vocab", "count"), [(1, 1), (300, 5), (9000, 20)])
def test_top_tokens(vocab: int, count: int) -> None:
    logprobs = torch.randn(3, vocab, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    values, tokens = TritonKernels().top(logprobs.to(DEVICE), count)
    expected = logprobs.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values.cpu(), expected.values[:, :count])
    assert torch.equal(tokens.cpu(), expected.indices[:, :count]), "the lowest token of a tie comes first"


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
