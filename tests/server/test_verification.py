"""Drafts are verified by the draws that would have been made without them."""

from __future__ import annotations

from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.engines.vllm.sampler import verify


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4), min_size=1, max_size=5))
def test_verification_takes_what_was_guessed(requests: list[list[tuple[int, int]]]) -> None:
    """Each request: pairs of a draft and the draw in its place; behind them a draw of 9."""
    drawn = torch.tensor([draw for pairs in requests for draw in (*(draw for _, draw in pairs), 9)])
    drafts = torch.tensor([draft for pairs in requests for draft, _ in pairs], dtype=torch.int64)
    counts = torch.tensor([len(pairs) for pairs in requests])
    result = verify(drawn, drafts, counts, int(counts.max()))
    start = 0
    for pairs, *told in zip(requests, *result, strict=True):
        tokens, places, count = (cast("Any", part.tolist()) for part in told)
        right = next((i for i, (draft, draw) in enumerate(pairs) if draft != draw), len(pairs))
        expected = [*(draw for _, draw in pairs), 9][: right + 1]
        assert count == len(expected)
        assert tokens == expected + [-1] * (len(tokens) - count)
        assert places[:count] == list(range(start, start + count))
        start += len(pairs) + 1
