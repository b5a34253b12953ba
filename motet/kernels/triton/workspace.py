"""What the launches of a step read and write: memory that is kept from step to step, so that addresses stay.

A captured graph replays launches at fixed addresses. `staged` puts what changes from step to step into that memory,
outside of the graph; the launches then neither allocate nor wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from motet.kernels.decode import DecodeRows
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.columns import FILTERED, GRAMMAR, INFO, LSE, STORED, TOPPED, TRACED, as_int
from motet.kernels.triton.table import RowTable, buffer_table, score_table, seeds


@dataclass(slots=True)
class Workspace:
    """Buffers by name; one grows, and so moves, only where a step is larger than all before it."""

    device: torch.device
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """What was written there before, or anything."""
        size = math.prod(shape)
        known = self.kept.get(name)
        if known is None or known.numel() < size or known.dtype != dtype:
            known = self.kept[name] = torch.empty(max(size, 1), dtype=dtype, device=self.device)
        return known[:size].view(shape)

    def put(self, name: str, values: Tensor) -> Tensor:
        """`values` from the host (or the device), in place. Pageable memory is staged before the call returns, so that
        nothing has to wait for the copy."""
        held = self.get(name, tuple(values.shape), values.dtype)
        held.copy_(values, non_blocking=True)
        return held

    def put_table(self, name: str, table: RowTable) -> RowTable:
        """The table on the device."""
        return replace(
            table,
            stream=self.put(f"{name} stream", table.stream),
            weight=self.put(f"{name} weight", table.weight),
            rule=self.put(f"{name} rule", table.rule),
            sets=self.put(f"{name} sets", table.sets),
            value=self.put(f"{name} value", table.value),
        )


@dataclass(frozen=True, slots=True)
class Asks:
    """What some row of a step asks for; with shapes and dtypes, it tells which kernels are launched."""

    traced: bool = False
    filtered: bool = False
    bound: bool = False  # by a grammar
    top: int = 0  # alternatives


@dataclass(frozen=True, slots=True)
class Batch:
    """What every kernel of a step reads: rows, where their streams lie, and what they ask for."""

    name: str
    table: RowTable
    buffers: Tensor  # tables, see `columns`
    code: int
    vocab: int
    space: Workspace
    info: Tensor
    words: Tensor
    params: Tensor
    draw: Tensor
    asks: Asks = Asks()

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory of this batch."""
        return self.space.get(f"{self.name} {name}", shape, dtype)

    def heads(self) -> tuple[Any, ...]:
        return self.buffers, self.table.stream, self.table.weight

    def inputs(self) -> tuple[Any, ...]:
        """The leading arguments of `tile_scores`."""
        rows, slots, num_sets = self.table.shape
        tau, lse = self.get("tau", (rows, num_sets)), self.get("lse", (rows, slots, as_int(LSE)))
        return (*self.heads(), self.table.rule, self.table.sets, tau, lse, self.get("solved", (rows, self.table.pairs)))

    @property
    def composed(self) -> Tensor:
        """(R, V) float32: rows that are filtered or report alternatives are written."""
        return self.get("composed", (self.table.shape[0], self.vocab))


def staged(space: Workspace, table: RowTable, buffers: Sequence[Tensor], rows: DecodeRows) -> Batch:
    """A step's own figures, written over those of the last one. `table` is on the device."""
    vocab = buffers[0].shape[-1]
    drawn = {r for r, token in enumerate(rows.forced) if token < 0 and rows.sampling.temperature[r] > 0.0}
    filtered = [r for r in drawn if rows.sampling.is_filtered(r)]  # the arg-max is never filtered
    topped, top = rows.topped(vocab)
    info = no_info(len(rows.forced))
    info[list(rows.trace), as_int(TRACED)] = 1
    info[[*filtered, *topped], as_int(STORED)] = 1
    info[filtered, as_int(FILTERED)] = 1
    info[topped, as_int(TOPPED)] = 1
    words = torch.zeros(1, 1, dtype=torch.int32)
    if rows.grammar is not None:
        info[list(rows.grammar.rows), as_int(GRAMMAR)] = torch.arange(len(rows.grammar.rows), dtype=torch.int32)
        words = rows.grammar.words
    asks = Asks(bool(rows.trace), bool(filtered), rows.grammar is not None, top)
    draw = torch.tensor([seeds(rows.uniform), rows.forced], dtype=torch.int64).T
    return _batch(space, "rows", table, buffers, (info, words, warp_table(rows.sampling), draw), asks)


def scores_of(batch: Batch) -> Batch:
    """The composed rows of a batch as rows to draw from once more."""
    table = batch.space.put_table("scores", score_table(batch.table.shape[0]))
    return _batch(
        batch.space, "scores", table, [batch.composed], (batch.info, batch.words, batch.params, batch.draw), Asks()
    )


def staged_scores(space: Workspace, scores: Tensor, params: SampleRows, uniform: Sequence[float]) -> Batch:
    """Rows to draw from scores (R, V) that are given."""
    count = scores.shape[0]
    table = space.put_table("scores", score_table(count))
    draw = torch.tensor([seeds(uniform), [-1] * count], dtype=torch.int64).T
    words = torch.zeros(1, 1, dtype=torch.int32)
    return _batch(space, "scores", table, [scores], (no_info(count), words, warp_table(params), draw), Asks())


def no_info(count: int) -> Tensor:
    """`info` of rows that ask for nothing."""
    info = torch.zeros(count, as_int(INFO), dtype=torch.int32)
    info[:, as_int(GRAMMAR)] = -1
    return info


def warp_table(params: SampleRows) -> Tensor:
    """`params` of rows."""
    return torch.tensor([params.temperature, params.top_k, params.top_p, params.min_p], dtype=torch.float32).T


def _batch(
    space: Workspace,
    name: str,
    table: RowTable,
    buffers: Sequence[Tensor],
    step: tuple[Tensor, Tensor, Tensor, Tensor],
    asks: Asks,
) -> Batch:
    addresses, code = buffer_table(buffers)
    info, words, params, draw = step
    return Batch(
        name,
        table,
        space.put(f"{name} buffers", addresses),
        code,
        buffers[0].shape[-1],
        space,
        space.put(f"{name} info", info),
        space.put(f"{name} words", words),
        space.put(f"{name} params", params),
        space.put(f"{name} draw", draw),
        asks,
    )
