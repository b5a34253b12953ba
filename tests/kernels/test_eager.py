"""The CPU's path equals the float64 oracle: all rules, sets, dtypes, layouts and ugly inputs in one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.composers.plan import Plan, TokenSet
from motet.composers.rows import compose_rows
from motet.kernels.eager import compose_logits
from motet.kernels.layout import edits
from motet.kernels.logits import Logits
from motet.kernels.reference import composed
from tests.kernels.cases import NUM_STREAMS, STATE, logits_of, plans

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 2e-4, torch.float16: 2e-4}


def both(
    buffers: Sequence[torch.Tensor], chosen: Sequence[Plan], streams: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fast, oracle in float64) log-probs."""
    logits = Logits(buffers)
    state = torch.tensor([STATE] * len(chosen), dtype=logits.dtype)
    rules = edits([(0, 0, 1.5), (len(chosen) - 1, 0, -2.0)], logits.like())
    fast = compose_logits(logits, compose_rows(chosen, streams, logits.like()), rules, state)
    exact = Logits([buffer.double() for buffer in buffers])
    rules = edits([(0, 0, 1.5), (len(chosen) - 1, 0, -2.0)], exact.like())
    oracle = composed(exact.logprobs(), compose_rows(chosen, streams, exact.like()), rules, state.double())
    return fast.logprobs, oracle.logprobs


def assert_close(fast: torch.Tensor, oracle: torch.Tensor, tolerance: float) -> None:
    possible = oracle > -40.0  # far below, only the relative error is bounded
    assert torch.equal(fast == -math.inf, oracle == -math.inf)
    torch.testing.assert_close(fast.double()[possible], oracle[possible], atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("vocab", [1, 31, 257, 1000, 32_007])
def test_all_rules_in_one_batch(vocab: int, dtype: torch.dtype) -> None:
    chosen = plans(vocab)
    buffers = logits_of(len(chosen), vocab, dtype)
    streams = [tuple(k * len(chosen) + r for k in range(NUM_STREAMS)) for r in range(len(chosen))]
    fast, oracle = both(buffers, chosen, [s[: len(p.streams)] for s, p in zip(streams, chosen, strict=True)])
    assert_close(fast, oracle, TOLERANCE[dtype])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), vocab=st.sampled_from([5, 31, 300]), seed=st.integers(0, 1000))
def test_any_rows_in_any_order(data: st.DataObject, vocab: int, seed: int) -> None:
    """Streams point anywhere: across buffers, repeated, strided."""
    kinds = plans(vocab)
    chosen = data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    buffers = [b[:, ::2] for b in logits_of(3, 2 * vocab, torch.float64, seed)]
    rows = st.integers(0, sum(b.shape[0] for b in buffers) - 1)
    streams = [[data.draw(rows) for _ in plan.streams] for plan in chosen]
    fast, oracle = both(buffers, chosen, streams)
    assert_close(fast, oracle, 1e-9)


def test_impossible_tokens_and_empty_rows() -> None:
    """−inf in any member, a mask over it, and a row that loses every token."""
    chosen = plans(40)
    buffers = logits_of(len(chosen), 40, torch.float64)
    buffers[0][:, 3] = buffers[1][:, 4] = buffers[2][:, 5] = -math.inf
    buffers[0][1, 1:] = -math.inf  # row 1: the base allows only token 0, the others forbid it
    buffers[1][1, 0] = buffers[2][1, 0] = -math.inf
    streams = [tuple(k * len(chosen) + r for k in range(len(p.streams))) for r, p in enumerate(chosen)]
    fast, oracle = both(buffers, chosen, streams)
    assert not fast.isnan().any()
    assert_close(fast, oracle, 1e-9)
    assert fast[1].argmax() == 0


def test_ties_are_kept_alike() -> None:
    """Whole-numbered logits tie everywhere; ratio masks keep all tokens of a tie."""
    chosen = [plan for plan in plans(64) if all(mask.kind == "ratio" for mask in plan.masks)]
    buffers = [b.round() for b in logits_of(len(chosen), 64, torch.float32)]
    streams = [tuple(k * len(chosen) + r for k in range(len(p.streams))) for r, p in enumerate(chosen)]
    fast, oracle = both(buffers, chosen, streams)
    assert_close(fast, oracle, 1e-4)


@pytest.mark.parametrize("vocab", [100, 40_000])
def test_a_row_is_composed_alike_alone_and_in_company(vocab: int) -> None:
    """To the last bit, whatever the block that it falls into."""
    chosen = plans(vocab) * 2
    buffers = logits_of(len(chosen), vocab, torch.float32)
    streams = [tuple(k * len(chosen) + r for k in range(len(p.streams))) for r, p in enumerate(chosen)]
    logits = Logits(buffers)
    state = torch.tensor([STATE] * len(chosen))
    together = compose_logits(logits, compose_rows(chosen, streams, logits.like()), None, state)
    for r in range(len(chosen)):
        alone = compose_logits(logits, compose_rows([chosen[r]], [streams[r]], logits.like()), None, state[:1])
        assert torch.equal(alone.logprobs[0], together.logprobs[r]), chosen[r]


def test_a_broken_member_stays_visible_in_its_own_rows_only() -> None:
    chosen = [plans(20)[0]] * 2
    buffers = logits_of(2, 20, torch.float32)
    buffers[1][1] = math.nan
    streams = [(0, 2, 4), (1, 3, 5)]
    logits = Logits(buffers)
    out = compose_logits(logits, compose_rows(chosen, streams, logits.like())).logprobs
    assert out[1].isnan().all()
    assert out[0].isfinite().all()


def test_unlike_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"widths \[3, 4\]"):
        Logits([torch.zeros(1, 3), torch.zeros(1, 4)])


def test_a_set_is_seen_from_raw_logits() -> None:
    """A constant on one member moves no threshold."""
    plan = Plan(plans(50)[0].streams, masks=(TokenSet(1, "ratio", 0.1), TokenSet(0, "rank_or_ratio", 0.2)))
    buffers = logits_of(1, 50, torch.float64)
    logits = Logits(buffers)
    rows = compose_rows([plan], [(0, 1, 2)], logits.like())
    before = compose_logits(logits, rows).logprobs
    shifted = Logits([buffers[0] + 9.0, buffers[1] - 5.0, buffers[2]])
    torch.testing.assert_close(compose_logits(shifted, rows).logprobs, before)
