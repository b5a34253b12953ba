"""The members' logits of a step, as they left the models: several matrices, one numbering of rows, no copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from motet.kernels.layout import Index


class Logits:
    """Rows 0 … N − 1 are those of `buffers[0]`, then those of `buffers[1]`, and so on.

    Args:
        buffers: (N_b, V) each, of one width and any floating dtype; rows may be strided.

    Raises:
        ValueError: widths differ.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        widths = {buffer.shape[-1] for buffer in buffers}
        if len(widths) != 1:
            raise ValueError(f"members compose over one vocabulary, got widths {sorted(widths)}")
        self.buffers = list(buffers)
        self.vocab = widths.pop()
        self.starts: list[int] = []
        self.num_rows = 0
        for buffer in self.buffers:
            self.starts.append(self.num_rows)
            self.num_rows += buffer.shape[0]
        wide = any(buffer.dtype == torch.float64 for buffer in self.buffers)
        self.dtype = torch.float64 if wide else torch.float32
        self.device = self.buffers[0].device

    def place(self, row: int) -> tuple[int, int]:
        """(buffer, row in it) of a global row."""
        number = max(b for b, start in enumerate(self.starts) if start <= row)
        return number, row - self.starts[number]

    def rows(self, index: Index) -> Tensor:
        """(n, V) raw logits: a view where the rows are consecutive in one buffer, else gathered."""
        wanted = _listed(index)
        first, low = self.place(min(wanted))
        last, _ = self.place(max(wanted))
        if first != last:
            places = [self.place(i) for i in wanted]
            return torch.stack([self.buffers[b][r].to(self.device, self.dtype) for b, r in places])
        if isinstance(index, slice):
            return self.buffers[first][low : low + len(wanted)]
        return self.buffers[first][index - self.starts[first]]

    def scores(self, index: Index) -> Tensor:
        """`rows` in the dtype that the composition is computed in."""
        return self.rows(index).to(self.device, self.dtype)

    def logprobs(self, index: Index | None = None) -> Tensor:
        """(n, V) normalised log-probs; of all rows without an index."""
        if index is None:
            index = slice(0, self.num_rows)
        return self.rows(index).to(self.device).log_softmax(-1, dtype=self.dtype)

    def like(self) -> Tensor:
        """An empty tensor of the composition's device and dtype."""
        return torch.empty(0, dtype=self.dtype, device=self.device)


def _listed(index: Index) -> list[int]:
    if isinstance(index, slice):
        return list(range(index.start, index.stop))
    return cast("list[int]", index.tolist())
