"""Values in blocks of rows: the same numbers and gradients as all rows at once, and never all scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from motet.composers.plan import Plan, Stream
from motet.composers.rows import reference_logprobs
from motet.kernels.composed_loss import BLOCK_BYTES, block_rows, in_blocks, weighted_sum
from tests.kernels.cases import logits_of

N, H, V = 7, 5, 23
SIZES = [1, 3, 7, 100]
TARGETS = torch.randint(V, (N,), generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Sum:
    """`log_softmax(w · h Wᵀ + h' W'ᵀ)` at the targets, of a trained member and one that is not."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.head = nn.Parameter(random(V, H))
        self.inputs: Sequence[Tensor] = (random(N, H).requires_grad_(), random(N, 9))
        self.other = random(V, 9)
        self.most = 0  # rows at once

    def __call__(self, rows: slice, hidden: Tensor, frozen: Tensor) -> Tensor:
        self.most = max(self.most, len(hidden))
        scores = (-1.3 * hidden @ self.head.T + frozen @ self.other.T).to(
            torch.promote_types(hidden.dtype, torch.float32)
        )
        return -nn.functional.cross_entropy(scores, TARGETS[rows], reduction="none")


def row_sums(rows: slice, one: Tensor, *others: Tensor) -> Tensor:
    return one.sum(-1)


def gradients(values: Tensor, sums: Sum) -> tuple[Tensor, ...]:
    wanted = [tensor for tensor in (sums.inputs[0], sums.head) if tensor.requires_grad]
    return torch.autograd.grad((values * WEIGHTS.to(values.dtype)).sum(), wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_for_any_block(size: int, trains: bool, dtype: torch.dtype, tolerance: float) -> None:
    sums = Sum(dtype)
    sums.head.requires_grad_(trains)
    expected = sums(slice(0, N), *sums.inputs)
    slopes = gradients(expected, sums)
    sums.most = 0
    got = in_blocks(sums, sums.inputs, size, trains=trains)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients(got, sums), slopes, rtol=tolerance, atol=tolerance)
    assert sums.most == min(size, N)


def test_the_weighted_sum_is_the_oracles() -> None:
    """Values and gradients, whatever constant a member adds to its logits."""
    streams = [stream.requires_grad_() for stream in logits_of(N, V, torch.float64)[:3]]
    weights, temperatures = (1.0, 0.7, -0.4), (1.0, 0.5, 2.0)
    plan = Plan(tuple(Stream("s", "m", w, temperature=t) for w, t in zip(weights, temperatures, strict=True)))
    expected = reference_logprobs(plan, torch.stack(streams))
    got = weighted_sum(streams, [w / t for w, t in zip(weights, temperatures, strict=True)]).log_softmax(-1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    picked = [torch.autograd.grad(z[torch.arange(N), TARGETS] @ WEIGHTS, streams) for z in (got, expected)]
    torch.testing.assert_close(*picked, rtol=0, atol=1e-12)


def test_gradcheck() -> None:
    sums = Sum()
    sums.head.requires_grad_(False)
    hidden, frozen = sums.inputs

    def blocks(hidden: Tensor) -> Tensor:
        return in_blocks(sums, (hidden, frozen), 2)

    assert cast("Any", torch.autograd).gradcheck(blocks, (hidden,))


@pytest.mark.parametrize("trains", [False, True])
def test_without_gradients_nothing_is_recorded(trains: bool) -> None:
    sums = Sum()
    with torch.no_grad():
        assert not in_blocks(sums, sums.inputs, 2, trains=trains).requires_grad
    plain = [rows.detach() for rows in sums.inputs]
    sums.head.requires_grad_(False)
    assert not in_blocks(sums, plain, 2).requires_grad


def test_an_input_that_decides_nothing_gets_zeros() -> None:
    one, other = torch.ones(N, 2, requires_grad=True), torch.ones(N, requires_grad=True)
    in_blocks(row_sums, (one, other), 3).sum().backward()
    assert one.grad is not None
    assert bool((one.grad == 1).all())
    assert other.grad is None or not other.grad.any()


def test_no_rows() -> None:
    empty = torch.zeros(0, H, requires_grad=True)
    values = in_blocks(row_sums, (empty,), 3)
    assert values.shape == (0,)
    values.sum().backward()


def test_a_block_holds_what_it_may() -> None:
    assert block_rows(151_936) * 151_936 * 4 <= BLOCK_BYTES < (block_rows(151_936) + 1) * 151_936 * 4
    assert block_rows(10**12) == 1
