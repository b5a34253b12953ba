"""What an adapter adds to its rows of a batch, and to no others."""

from __future__ import annotations

import pytest
import torch

from motet.engines.torch.low_rank import LowRank, Rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[0], [2, 3, 4], [0, 2, 5], list(range(6))])
def test_rows_of_others_keep_every_bit(dtype: torch.dtype, rows: list[int]) -> None:
    """Even where the adapter makes infinities of them."""
    torch.manual_seed(0)
    x, y, down, up = (torch.randn(shape, dtype=dtype) for shape in ((6, 16), (6, 24), (4, 16), (24, 4)))
    others = [row for row in range(6) if row not in rows]
    x[others] = 1e38
    expected = y.double()
    expected[rows] += x[rows].double() @ down.double().t() @ up.double().t()
    before = y.clone()
    wide = torch.cat([y, y], 1)  # as a part of a joint projection lies
    LowRank(down, up).add(wide[:, :24], x, Rows.of(rows, x.device))
    assert torch.equal(wide[others], torch.cat([before, before], 1)[others])
    assert torch.equal(wide[:, 24:], before)
    atol, rtol = (1e-4, 1e-4) if dtype == torch.float32 else (0.15, 0.05)
    torch.testing.assert_close(wide[rows, :24].double(), expected[rows], atol=atol, rtol=rtol)
