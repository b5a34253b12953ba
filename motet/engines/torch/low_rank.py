"""Linears of a model with what adapters add to their own rows of a forward: `W x + s · B (A x)`.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. W is the model's own, however it is stored; rows
of several adapters and of none are rows of one product with it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from motet.engines.torch.packing import PackedLinear, can_pack


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a flat batch that are one adapter's: those of the span, but for the `others` (n, 1) within it."""

    span: slice
    others: Tensor | None = None

    @classmethod
    def of(cls, rows: Sequence[int], device: torch.device) -> Rows:
        """`rows` ascending, at least one."""
        first, length = rows[0], rows[-1] + 1 - rows[0]
        if length == len(rows):
            return cls(slice(first, first + length))
        others = torch.ones(length, 1, dtype=torch.bool)
        others[[row - first for row in rows]] = False
        return cls(slice(first, first + length), others.to(device))


# Of the forward that runs now, by the adapters' numbers.
_ROWS: ContextVar[Mapping[int, Rows]] = ContextVar("rows", default=MappingProxyType({}))


@contextmanager
def adding(rows: Mapping[int, Rows]) -> Generator[None]:
    """A forward within adds to these rows what their adapters add."""
    current = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(current)


class LowRank:
    """`x ↦ B (A x)` for one linear.

    Args:
        down: A (r, in).
        up: B (out, r), times the adapter's scale.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self.nbytes = (down.numel() + up.numel()) * down.dtype.itemsize
        # half precision goes through oneDNN, which compiles for every number of rows that is not padded
        packs = down.device.type == "cpu" and down.dtype != torch.float32 and can_pack(down.dtype)
        self._packed = (PackedLinear(down, None), PackedLinear(up, None)) if packs else None
        self._plain = None if packs else (down.t().contiguous(), up.t().contiguous())

    def add(self, y: Tensor, x: Tensor, rows: Rows) -> None:
        """Adds to y (N, out), in place, what x (N, in) gives in these rows."""
        x, y = x[rows.span], y[rows.span]
        inner = x @ self._plain[0] if self._plain else self._packed[0](x) if self._packed else x
        if rows.others is not None:
            inner = inner.masked_fill_(rows.others, 0)  # filled, not multiplied: 0 · inf is no zero
        if self._plain:
            y.addmm_(inner, self._plain[1])
        elif self._packed:
            y.add_(self._packed[1](inner))


class Adapted(nn.Module):
    """Stands where a linear stood, and adds to its rows what their adapters add.

    Attributes:
        linear: what stood there: as it is, packed, quantised, or a part of a joint projection.
        added: by the adapters' numbers.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.added: dict[int, LowRank] = {}

    def __getattr__(self, name: str) -> Any:
        """Some families look at a linear's weight, for its dtype."""
        found = vars(self)["_modules"]
        return found[name] if name in found else getattr(found["linear"], name)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        for number, rows in _ROWS.get().items():
            if (own := self.added.get(number)) is not None:
                # views, which refuse what they would have to copy
                own.add(y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1]), rows)
        return y
