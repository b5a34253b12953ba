"""The kernel for 4-bit weights against the definition of its forms, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from motet.engines.torch.int4 import GROUP, Int4Kernel, as_read, int4_kernel, pack, unpack

BUILT = int4_kernel()
needs_kernel = pytest.mark.skipif(BUILT is None, reason="no processor with AVX-512 VNNI, or no C++ compiler")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros; scales of both signs, as least squares may choose none but the kernel need not know."""
    codes = torch.randint(0, 16, (outputs, inputs), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    scale, zero = (0.1 * numbers(outputs, inputs // GROUP, seed=seed).bfloat16() for seed in (2, 3))
    return codes, scale, zero


def meaning(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(code − 8) · scale + zero, in float64."""
    wide = (codes.double() - 8).view(len(codes), -1, GROUP)
    return (wide * scale.double()[..., None] + zero.double()[..., None]).flatten(1)


@pytest.fixture
def kernel() -> Int4Kernel:
    assert BUILT is not None
    return BUILT


def test_what_is_packed_is_what_is_unpacked() -> None:
    codes, scale, zero = weight(48, 96)
    torch.testing.assert_close(unpack(pack(codes, scale, zero), torch.float64), meaning(codes, scale, zero))


def test_a_block_is_five_lines_of_cache_for_each_group() -> None:
    assert pack(*weight(32, 64)).shape == (2, 2, 5 * 64)


@needs_kernel
@pytest.mark.parametrize("rows", [*range(1, 10), 16, 63, 64, 65, 131])
@pytest.mark.parametrize("shape", [(16, 32), (48, 96), (160, 512)])
def test_the_product_is_that_of_what_is_read(kernel: Int4Kernel, rows: int, shape: tuple[int, int]) -> None:
    """Sums of float32 in any order, and one rounding to bfloat16."""
    parts = weight(*shape)
    x = (numbers(rows, shape[1]) * 3).bfloat16()
    read, exact_weight = as_read(x).double(), meaning(*parts)
    exact, size = read @ exact_weight.t(), read.abs() @ exact_weight.abs().t()
    found = kernel.multiply(x, pack(*parts)).double()
    assert ((found - exact).abs() <= 2**-8 * exact.abs() + 2**-20 * size).all()


def test_activations_are_read_to_half_a_step() -> None:
    x = (numbers(5, 96) * torch.logspace(-4, 4, 96)).bfloat16()
    largest = x.float().view(5, -1, GROUP).abs().amax(-1, keepdim=True)
    off = (as_read(x) - x.float()).view(5, -1, GROUP).abs()
    assert (off <= largest / 127 * 0.5001).all()
    assert torch.equal(as_read(torch.zeros(2, 64)), torch.zeros(2, 64))


@needs_kernel
def test_a_row_is_the_same_among_others_and_with_one_thread(kernel: Int4Kernel) -> None:
    packed, x = pack(*weight(96, 256)), numbers(77, 256).bfloat16()
    together = kernel.multiply(x, packed)
    assert all(torch.equal(together[i], kernel.multiply(x[i : i + 1], packed)[0]) for i in range(77))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(kernel.multiply(x, packed), together)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_rows_that_do_not_lie_side_by_side(kernel: Int4Kernel) -> None:
    packed, x = pack(*weight(32, 64)), numbers(64, 6).bfloat16()
    assert torch.equal(kernel.multiply(x.t(), packed), kernel.multiply(x.t().contiguous(), packed))
    assert kernel.multiply(x.t()[:0], packed).shape == (0, 32)


@needs_kernel
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(kernel: Int4Kernel, number: float) -> None:
    """And does not reach other rows: an engine must see that a model has broken."""
    x = numbers(3, 96).bfloat16()
    x[1, 40] = number
    found = kernel.multiply(x, pack(*weight(32, 96)))
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()
