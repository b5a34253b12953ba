"""Launches over a batch: grids, splits of the vocabulary, scratch memory. No launch waits for the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from motet.kernels.triton import alpha, decode, discriminator, sets, stats, top, warp
from motet.kernels.triton.noise import TILE
from motet.kernels.triton.table import MIXED, RowTable

PROGRAMS = 512  # aimed at per launch: several for each of a large chip's multiprocessors
BLOCK = 512  # tokens at once where 8 or 16 values per token are held
MAX_REGISTERS = 255  # all that a thread may have
SMALL_BLOCK = 256  # the same where a whole score is computed beside them
TOP_CHUNK = 4096  # tokens of one program of the first pass of `top`


def resources(rules: bool, gated: bool, dtype: int, slots: int) -> dict[str, int]:
    """Launch options of `decode`'s kernels. The rich ones take eight warps, half the values per thread, and their
    assembler is told not to save registers: left alone it spills a few bytes to fit one more program."""
    rich = rules or gated or dtype == MIXED or slots > 4
    return {"num_warps": 8, "maxnreg": MAX_REGISTERS} if rich else {"num_warps": 4}


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """One launch; whether products and sums fuse is said, since the default differs between versions."""
    kernel[grid](*arguments, enable_fp_fusion=True, **options)


@dataclass(slots=True)
class Scratch:
    """Buffers by name, kept from step to step: addresses stay, as a captured graph needs."""

    device: torch.device
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        size = 1
        for length in shape:
            size *= length
        known = self.kept.get(name)
        if known is None or known.numel() < size or known.dtype != dtype:
            known = self.kept[name] = torch.empty(max(size, 1), dtype=dtype, device=self.device)
        return known[:size].view(shape)


@dataclass(frozen=True, slots=True)
class Split:
    """A vocabulary of V tokens in `parts` of `tiles` blocks each."""

    parts: int
    tiles: int

    @property
    def width(self) -> int:
        return triton.next_power_of_2(self.parts)


def split_vocab(rows: int, vocab: int, block: int = TILE) -> Split:
    """Few rows are split into many parts, so that one row uses the whole chip."""
    tiles = triton.cdiv(vocab, block)
    parts = min(tiles, max(1, PROGRAMS // rows))
    each = triton.cdiv(tiles, parts)
    return Split(triton.cdiv(tiles, each), each)


@dataclass(frozen=True, slots=True)
class Batch:
    """What every kernel of a step reads."""

    table: RowTable
    buffers: Tensor  # (B, 3) int64
    code: int
    vocab: int
    scratch: Scratch

    def heads(self) -> tuple[Any, ...]:
        return self.buffers, self.table.stream, self.table.weight

    def inputs(self) -> tuple[Any, ...]:
        """The leading arguments of `tile_scores`."""
        rows, slots, num_sets = self.table.shape
        tau = self.scratch.get("tau", (rows, num_sets))
        lse = self.scratch.get("lse", (rows, slots, 2))
        solved = self.scratch.get("solved", (rows,))
        return (*self.heads(), self.table.rule, self.table.sets, tau, lse, solved)


def prepare(batch: Batch) -> Tensor:
    """Everything that must be known of whole rows before they are composed; returns `solved` (R,)."""
    rows, slots, num_sets = batch.table.shape
    *_, tau, lse, solved = batch.inputs()
    if batch.table.needs_stats:
        _stats(batch, lse)
    if num_sets and batch.table.needs_stats:
        _run(sets.set_thresholds, (rows * num_sets,),
            batch.buffers, batch.table.stream, lse, batch.table.sets, batch.table.value, tau, batch.vocab, slots,
            num_sets, BLOCK=BLOCK, DTYPE=batch.code, num_warps=8,
        )  # fmt: skip
    if batch.table.has_rules:
        solved.fill_(float("-inf"))
    if batch.table.has_solver:
        _solve(batch, solved)
    if batch.table.has_discriminator:
        _run(discriminator.discriminator_threshold, (rows,),
            *batch.inputs(), batch.vocab, K=slots, S=num_sets, BLOCK=SMALL_BLOCK, DTYPE=batch.code, num_warps=8,
            maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    return solved


def _stats(batch: Batch, lse: Tensor) -> None:
    rows, slots, _ = batch.table.shape
    split = split_vocab(rows * slots, batch.vocab)
    part = batch.scratch.get("stats", (rows * slots, split.parts, 2))
    _run(
        stats.stats_part,
        (rows * slots, split.parts),
        *batch.heads(),
        part,
        batch.vocab,
        split.tiles,
        slots,
        split.parts,
        TILE=TILE,
        DTYPE=batch.code,
    )
    _run(stats.stats_end, (rows * slots,), batch.table.stream, part, lse, split.parts, WIDTH=split.width)


def _solve(batch: Batch, solved: Tensor) -> None:
    rows, slots, _ = batch.table.shape
    table = batch.table
    split = split_vocab(rows, batch.vocab, BLOCK)
    target = batch.scratch.get("target", (rows, split.parts, 6))
    part = batch.scratch.get("alpha", (rows, split.parts, 8, 4))
    base, bracket = batch.scratch.get("base", (rows, 2)), batch.scratch.get("bracket", (rows, 2))
    shape: dict[str, Any] = {"K": slots, "SPLITS": split.parts, "BLOCK": BLOCK, "DTYPE": batch.code, "num_warps": 8}
    grid = (rows, split.parts)
    _run(alpha.alpha_targets, grid, *batch.heads(), target, table.rule, batch.vocab, split.tiles, **shape)
    for number in range(alpha.PASSES):
        _run(
            alpha.alpha_pass,
            grid,
            *batch.heads(),
            table.rule,
            part,
            base,
            bracket,
            batch.vocab,
            split.tiles,
            number,
            **shape,
        )
        last = number == alpha.PASSES - 1
        _run(
            alpha.alpha_narrow,
            (rows,),
            part,
            target,
            table.rule,
            base,
            bracket,
            solved,
            number,
            last,
            split.parts,
            WIDTH=split.width,
        )


def scan_and_finish(
    batch: Batch, temperature: Tensor, seed: Tensor, forced: Tensor, composed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens (R,) int64 and the report (R, 3) of `decode.finish`; z is written to `composed` (R, V) where given."""
    rows, slots, num_sets = batch.table.shape
    split = split_vocab(rows, batch.vocab)
    part = batch.scratch.get("scan", (rows, split.parts, 7))
    flags: dict[str, Any] = {
        "K": slots, "S": num_sets, "RULES": batch.table.has_rules, "GATED": batch.table.has_gates, "TILE": TILE,
        "DTYPE": batch.code,
        **resources(batch.table.has_rules, batch.table.has_gates, batch.code, slots),
    }  # fmt: skip
    store = composed is not None
    _run(decode.scan, (rows, split.parts),
        *batch.inputs(), temperature, seed, part, composed if store else part, batch.vocab, split.tiles, split.parts,
        STORE=store, **flags,
    )  # fmt: skip
    token = torch.empty(rows, dtype=torch.int64, device=part.device)
    report = torch.empty(rows, 3, device=part.device)
    _run(decode.finish, (rows,),
        *batch.inputs(), temperature, seed, forced, part, token, report, batch.vocab, split.parts, WIDTH=split.width,
        **flags,
    )  # fmt: skip
    return token, report


def normalise(batch: Batch, composed: Tensor, report: Tensor) -> None:
    """Log-probs from z, in place."""
    rows, slots, _ = batch.table.shape
    grid = (rows, triton.cdiv(batch.vocab, TILE))
    _run(
        decode.normalise,
        grid,
        batch.buffers,
        batch.table.stream,
        composed,
        report,
        batch.vocab,
        slots,
        TILE=TILE,
        DTYPE=batch.code,
    )


def thresholds(scores: Tensor, params: Tensor, tau: Tensor) -> None:
    """Thresholds (R,) of top-k, top-p and min-p over scores (R, V)."""
    _run(warp.warp_threshold, (scores.shape[0],), scores, params, tau, scores.shape[1], BLOCK=BLOCK, num_warps=8)


def top_tokens(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values (R, count) and tokens (R, count) int32, best first."""
    rows, width = values.shape
    ids: Tensor | None = None
    while True:
        chunk = max(TOP_CHUNK, 2 * count)
        parts = triton.cdiv(width, chunk)
        out_values = torch.empty(rows, parts * count, device=values.device)
        out_ids = torch.empty(rows, parts * count, dtype=torch.int32, device=values.device)
        _run(top.top_tokens, (rows, parts),
            values, values if ids is None else ids, out_values, out_ids, width, chunk, parts, count,
            HAS_IDS=ids is not None, BLOCK=triton.next_power_of_2(min(chunk, width)), num_warps=8,
        )  # fmt: skip
        values, ids, width = out_values, out_ids, parts * count
        if parts == 1:
            return values, ids
