"""The kernels beside the float64 oracle: what tests and `benchmarks.gpu` compare, on whatever device there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from motet.composers.plan import Plan
from motet.composers.rows import compose_rows
from motet.kernels.decode import Decoded, DecodeRows
from motet.kernels.layout import ComposeRows, SparseEdits
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed, composed
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.backend import TritonKernels
from tests.kernels.cases import STATE, logits_of
from tests.kernels.frequencies import draws

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ATOL = 3e-4  # α is solved to 1e-5 relative, and moves scores by up to ten times as much


class Oracle:
    """`reference` as `decode.Kernels`: greedy rows alone are drawn."""

    name = "oracle"

    def compose(self, logits: Logits, plan: ComposeRows, rules: SparseEdits | None, state: Tensor | None) -> Composed:
        return composed(logits.logprobs(), plan, rules, state)

    def sample(self, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Tensor:
        assert not any(params.temperature)
        return scores.argmax(-1)

    def top(self, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
        ordered = logprobs.sort(dim=-1, descending=True, stable=True)
        return ordered.values[:, :count], ordered.indices[:, :count]

    def fused(self, logits: Logits, rows: DecodeRows) -> Decoded | None:
        return None


def streams_of(chosen: Sequence[Plan], rows: int) -> list[tuple[int, ...]]:
    return [tuple(k * rows + r for k in range(len(plan.streams))) for r, plan in enumerate(chosen)]


def has_nucleus(plan: Plan) -> bool:
    sets = [*plan.masks, *(stream.inside for stream in plan.streams)]
    return any(entry is not None and entry.kind == "nucleus" for entry in sets)


def greedy(rows: int) -> SampleRows:
    return SampleRows([0.0] * rows, [0] * rows, [1.0] * rows, [0.0] * rows)


def both(
    buffers: Sequence[Tensor], chosen: Sequence[Plan], streams: Sequence[Sequence[int]]
) -> tuple[Composed, Composed]:
    """(kernels, oracle in float64)."""
    logits = Logits([buffer.to(DEVICE) for buffer in buffers])
    state = torch.tensor([STATE] * len(chosen), device=DEVICE)
    got = TritonKernels().compose(logits, compose_rows(chosen, streams, logits.like()), None, state)
    exact = Logits([buffer.double() for buffer in buffers])
    plan = compose_rows(chosen, streams, exact.like())
    return Composed(got.logprobs.cpu(), got.alpha.cpu()), composed(exact.logprobs(), plan, None, state.double().cpu())


def assert_close(got: Composed, oracle: Composed) -> float:
    """Returns the largest error of a log-prob, in nats."""
    possible = oracle.logprobs > -40.0
    assert torch.equal(got.logprobs == -math.inf, oracle.logprobs == -math.inf)
    found, wanted = got.logprobs.double()[possible], oracle.logprobs[possible]
    torch.testing.assert_close(found, wanted, atol=ATOL, rtol=1e-4)
    torch.testing.assert_close(got.alpha.double(), oracle.alpha, atol=1e-4, rtol=1e-4, equal_nan=True)
    return float((found - wanted).abs().max())


def step_of(
    chosen: Sequence[Plan], vocab: int, seed: int = 0, params: SampleRows | None = None, **fields: Any
) -> tuple[Logits, DecodeRows]:
    """A step whose rows are greedy unless told otherwise."""
    count = len(chosen)
    logits = Logits([buffer.to(DEVICE) for buffer in logits_of(count, vocab, torch.float32, seed)])
    plan = compose_rows(chosen, streams_of(chosen, count), logits.like())
    state = torch.tensor([STATE] * count, device=DEVICE)
    return logits, DecodeRows(plan, [-1] * count, params or greedy(count), draws(count, seed), state, **fields)


def exactly(chosen: Sequence[Plan], logits: Logits, rows: DecodeRows) -> tuple[Logits, DecodeRows]:
    """The same step for the oracle, in float64."""
    exact = Logits([buffer.double() for buffer in logits.buffers])
    plan = compose_rows(chosen, streams_of(chosen, len(chosen)), exact.like())
    state = None if rows.state is None else rows.state.double()
    return exact, replace(rows, plan=plan, state=state)


def assert_alike(got: Decoded, expected: Decoded) -> float:
    """Tokens that are possible are the same; a row of which nothing is possible says so. Returns the largest error of
    a token's log-prob."""
    wanted = expected.logprob.to(got.logprob.dtype)
    torch.testing.assert_close(got.logprob, wanted, atol=ATOL, rtol=1e-4)
    possible = expected.logprob > -math.inf
    assert torch.equal(got.token[possible], expected.token[possible])
    if expected.kl is not None and expected.base_rank is not None:
        assert got.kl is not None
        assert got.base_rank is not None
        kl = expected.kl.to(got.kl.dtype)
        torch.testing.assert_close(got.kl[possible], kl[possible], atol=ATOL, rtol=1e-4, equal_nan=True)
        assert torch.equal(got.base_rank[possible], expected.base_rank[possible])
    return float((got.logprob - wanted)[possible].abs().max()) if bool(possible.any()) else 0.0
