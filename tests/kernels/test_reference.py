"""The composition formula against arithmetic written out in numpy, float64."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.kernels.layout import BitMask, ComposeRows, MaskRows, SetRows, TermRows, edits, rows_index
from motet.kernels.reference import (
    compose,
    inverse_cdf,
    kl_divergence,
    outside_set,
    penalise,
    restrict,
    shift_rank,
    unpacked,
    warp,
)

Array = npt.NDArray[np.float64]


def log_softmax(x: Array) -> Array:
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def random_logprobs(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)).log_softmax(-1)


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("vocab", [1, 31, 257, 1000])
def test_linear_terms_of_mixed_rows(vocab: int) -> None:
    logprobs = random_logprobs(5, vocab)
    # row 0: streams 0, 2; row 1: stream 4 alone; row 2: streams 3, 1
    plan = ComposeRows(
        num_rows=3,
        base=rows_index([0, 4, 3]),
        terms=(
            TermRows(rows_index([0, 1, 2]), rows_index([0, 4, 3]), weights(1.0, 1.0, 1.5)),
            TermRows(rows_index([0, 2]), rows_index([2, 1]), weights(0.7, -0.5)),
        ),
    )
    x = logprobs.numpy()
    expected = log_softmax(np.stack([x[0] + 0.7 * x[2], x[4], 1.5 * x[3] - 0.5 * x[1]]))
    np.testing.assert_allclose(compose(logprobs, plan).numpy(), expected, atol=1e-12)


def test_temperature_and_gate() -> None:
    logprobs = random_logprobs(2, 50)
    gate = SetRows("nucleus", 0.8, rows_index([1]))
    plan = ComposeRows(
        1,
        rows_index([0]),
        (
            TermRows(slice(0, 1), slice(0, 1), weights(1.0)),
            TermRows(slice(0, 1), slice(1, 2), weights(-0.6), temperature=weights(0.5), inside=gate),
        ),
    )
    x = logprobs.numpy()
    order = np.argsort(-x[1], kind="stable")
    mass_before = np.cumsum(np.exp(x[1][order])) - np.exp(x[1][order])
    inside = np.zeros(50, dtype=bool)
    inside[order[mass_before < 0.8]] = True
    expected = log_softmax(x[0] - 0.6 * np.where(inside, log_softmax(x[1] / 0.5), 0.0))
    np.testing.assert_allclose(compose(logprobs, plan)[0].numpy(), expected, atol=1e-12)


def test_masks_come_last_and_intersect() -> None:
    logprobs = random_logprobs(2, 40)
    masks = (
        MaskRows(slice(0, 1), SetRows("ratio", 0.1, slice(0, 1))),
        MaskRows(slice(0, 1), SetRows("rank_or_ratio", 0.05, slice(0, 1))),
    )
    plan = ComposeRows(1, slice(0, 1), (TermRows(slice(0, 1), slice(1, 2), weights(1.0)),), masks)
    rules = edits([(0, token, 1e6) for token in range(40)], logprobs)
    kept = compose(logprobs, plan, rules)[0] > -math.inf
    expected = logprobs[0] >= logprobs[0].max() + math.log(0.1)
    assert torch.equal(kept, expected)  # no rule lifts a masked token


def test_rank_or_ratio_threshold() -> None:
    """min(L_(m), max + ln f): the m most likely tokens stay even where they fall short of the ratio."""
    peaked = torch.tensor([[0.0, -20.0, -21.0, -22.0]], dtype=torch.float64).log_softmax(-1)
    assert outside_set(peaked, "rank_or_ratio", 0.5).tolist() == [[False, False, True, True]]
    assert outside_set(peaked, "ratio", 0.5).tolist() == [[False, True, True, True]]
    flat = torch.zeros(1, 4, dtype=torch.float64).log_softmax(-1)
    assert not outside_set(flat, "rank_or_ratio", 0.5).any()


def test_nucleus_of_one_keeps_the_tail() -> None:
    """A disabled top-p must not cut tokens where the float32 cumulative sum has rounded to 1."""
    logprobs = torch.cat([torch.zeros(1, 1), torch.full((1, 999), -30.0)], -1).log_softmax(-1)
    assert not outside_set(logprobs, "nucleus", 1.0).any()
    assert outside_set(logprobs, "nucleus", 1e-9).sum() == 999


def test_impossible_tokens_never_become_possible() -> None:
    logprobs = random_logprobs(3, 20)
    logprobs[1, 3] = logprobs[2, 4] = logprobs[0, 5] = logprobs[2, 5] = -math.inf
    plan = ComposeRows(
        1,
        slice(0, 1),
        (
            TermRows(slice(0, 1), slice(0, 1), weights(1.0)),
            TermRows(slice(0, 1), slice(1, 2), weights(1.0)),
            TermRows(slice(0, 1), slice(2, 3), weights(-1.0)),
        ),
    )
    composed = compose(logprobs, plan)[0]
    assert not composed.isnan().any()
    assert (composed == -math.inf).nonzero().flatten().tolist() == [3, 4, 5]
    assert composed.exp().sum().item() == pytest.approx(1.0)


def test_row_without_tokens_keeps_the_base_argmax() -> None:
    logprobs = random_logprobs(2, 6)
    logprobs[1] = torch.tensor([0.0] + [-math.inf] * 5, dtype=torch.float64)
    logprobs[0, 0] = -math.inf
    plan = ComposeRows(
        1,
        slice(0, 1),
        (TermRows(slice(0, 1), slice(0, 1), weights(1.0)), TermRows(slice(0, 1), slice(1, 2), weights(1.0))),
    )
    composed = compose(logprobs, plan)[0]
    assert composed.argmax() == logprobs[0].argmax()
    assert composed.max() == 0.0


def test_a_broken_member_stays_visible_in_its_own_rows_only() -> None:
    logprobs = random_logprobs(2, 6)
    logprobs[1] = math.nan
    plan = ComposeRows(2, slice(0, 2), (TermRows(slice(0, 2), slice(0, 2), weights(1.0, 1.0)),))
    composed = compose(logprobs, plan)
    assert composed[1].isnan().all()
    torch.testing.assert_close(composed[0], logprobs[0])


def test_restrict_bans_allows_and_renormalises() -> None:
    logprobs = random_logprobs(3, 10)
    before = logprobs.clone()
    out = restrict(logprobs, edits([(0, 2, 0.0), (0, 3, 0.0)], logprobs), [(1, torch.tensor([4, 7]))])
    assert (out[0] == -math.inf).nonzero().flatten().tolist() == [2, 3]
    assert (out[1] > -math.inf).nonzero().flatten().tolist() == [4, 7]
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(out[1, 4] - out[1, 7], before[1, 4] - before[1, 7])
    torch.testing.assert_close(out[2], before[2])


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 257])
def test_bit_masks_of_single_rows(vocab: int) -> None:
    """Bit v mod 32 of word ⌊v/32⌋, the sign bit included; rows without a grammar are those of before."""
    generator = torch.Generator().manual_seed(vocab)
    may = torch.rand(2, vocab, generator=generator) < 0.5
    may[:, -1] = True
    may[0, 31 % vocab] = True
    words = [[sum(1 << bit for bit in range(32) if word * 32 + bit < vocab and bool(row[word * 32 + bit]))
              for word in range((vocab + 31) // 32)] for row in may]  # fmt: skip
    packed = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    assert torch.equal(torch.stack([unpacked(row, vocab) for row in packed]), may)
    logprobs = random_logprobs(3, vocab)
    before = logprobs.clone()
    mask = BitMask((2, 0), packed)
    mask.check(vocab)
    out = restrict(logprobs, None, [], mask)
    expected = before.clone()
    expected[2], expected[0] = (
        before[row].masked_fill(~keep, -math.inf).log_softmax(-1) for row, keep in zip((2, 0), may, strict=True)
    )
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match=rf"mask of {vocab + 32} tokens for 2 rows is int32 \(2, "):
        mask.check(vocab + 32)
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        BitMask((2, 0), packed.long()).check(vocab)


def test_penalties() -> None:
    logprobs = random_logprobs(1, 5)
    bias = edits([(0, 1, 2.0), (0, 1, 1.0)], logprobs)
    repetition = edits([(0, 1, 2.0), (0, 3, 2.0)], logprobs)
    out = penalise(logprobs, bias, repetition, edits([(0, 4, -0.5), (0, 3, -1.0)], logprobs))
    lifted = logprobs[0, 1] + 3.0
    assert out[0, 1].item() == pytest.approx((lifted * 2 if lifted < 0 else lifted / 2).item())
    assert out[0, 3].item() == pytest.approx(2 * logprobs[0, 3].item() - 1.0)
    assert out[0, 4].item() == pytest.approx(logprobs[0, 4].item() - 0.5)
    assert out[0, 0].item() == logprobs[0, 0].item()


def test_kl_divergence_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2))


def test_kl_divergence_where_a_probability_has_underflown() -> None:
    """0 · ∞ is nothing: the composition's last tokens may be impossible under the base."""
    p = torch.tensor([[0.0, -200.0, -math.inf]])
    q = torch.tensor([[-0.5, -math.inf, -1.0]])
    assert kl_divergence(p, q).item() == pytest.approx(0.5)
    assert kl_divergence(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2)).isnan().all()


def test_shift_rank_counts_what_the_base_likes_more() -> None:
    base = torch.tensor([[0.1, 0.4, 0.3, 0.3]]).log().expand(4, -1)
    assert shift_rank(base, torch.tensor([1, 2, 3, 0])).tolist() == [0, 1, 1, 3]


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 300),
    temperature=st.floats(0.05, 5.0),
    top_k=st.integers(0, 300),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_warp_keeps_what_the_definitions_keep(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    scores = random_logprobs(1, vocab, seed)
    probs = warp(scores, weights(temperature), torch.tensor([top_k]), weights(top_p), weights(min_p))[0].numpy()
    order = np.argsort(-scores[0].numpy(), kind="stable")
    p = np.exp(log_softmax(scores[0].numpy() / temperature))[order]
    if top_k:
        p = np.where(np.arange(vocab) < top_k, p, 0.0)
    p = p / p.sum()
    keep = (np.cumsum(p) - p < top_p) if top_p < 1 else p > 0
    keep &= p >= min_p * p[0]
    keep[0] = True
    expected = np.zeros(vocab)
    expected[order] = np.where(keep, p, 0.0) / p[keep].sum()
    # a float that decides membership may round either way at the very boundary
    if np.array_equal(expected > 0, probs > 0):
        np.testing.assert_allclose(probs, expected, atol=1e-12)
    else:
        unlike = (expected > 0) != (probs > 0)
        assert int(unlike.sum()) <= 1 or float((expected + probs)[unlike].sum()) < 1e-8


def test_inverse_cdf_never_draws_the_impossible() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    for uniform in (1e-30, 0.25, 0.5, 0.5000001, 0.75, 1.0):
        assert inverse_cdf(probs, torch.tensor([uniform])).item() in (1, 3)
    assert inverse_cdf(probs, torch.tensor([1.0])).item() == 3
    assert inverse_cdf(probs, torch.tensor([1e-30])).item() == 1


def test_rows_index_is_a_slice_where_it_can_be() -> None:
    assert rows_index([3, 4, 5]) == slice(3, 6)
    index = rows_index([3, 5, 4])
    assert isinstance(index, torch.Tensor)
    assert index.tolist() == [3, 5, 4]
