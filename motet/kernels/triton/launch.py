"""Launches over a batch: grids, splits of the vocabulary, constants. No launch allocates or waits for the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from motet.kernels.triton import alpha, cascade, decode, discriminator, divergence, sets, sparse, stats, top, warp
from motet.kernels.triton.columns import ALL, FILTERED, RELAXED, REPORT, STORED, TOPPED, as_int
from motet.kernels.triton.noise import TILE
from motet.kernels.triton.table import ALIGNED, MIXED
from motet.kernels.triton.workspace import Batch

PROGRAMS = 512  # aimed at per launch: several for each of a large chip's multiprocessors
BLOCK = 512  # tokens at once where 8 or 16 values per token are held
MAX_REGISTERS = 255  # all that a thread may have
SMALL_BLOCK = 256  # the same where a whole score is computed beside them
EVERY = as_int(ALL)
TOP_CHUNK = 4096  # tokens of one program of the first pass of `top`


def resources(rules: bool, gated: bool, dtype: int, slots: int) -> dict[str, int]:
    """Launch options of `decode`'s kernels. The rich ones take eight warps, half the values per thread, and their
    assembler is told not to save registers: left alone it spills a few bytes to fit one more program."""
    rich = rules or gated or dtype % ALIGNED == MIXED or slots > 4
    return {"num_warps": 8, "maxnreg": MAX_REGISTERS} if rich else {"num_warps": 4}


def _run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """One launch; whether products and sums fuse is said, since the default differs between versions."""
    kernel[grid](*arguments, enable_fp_fusion=True, **options)


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
class Outputs:
    """Written in place, step after step: `token` (R,) int64; `report`, see `columns`; `rank` (R,) int64 under the base;
    `values` and `ids` (R, top) of the alternatives."""

    token: Tensor
    report: Tensor
    rank: Tensor
    values: Tensor | None = None
    ids: Tensor | None = None


def outputs_of(batch: Batch) -> Outputs:
    rows, most = batch.table.shape[0], batch.asks.top
    token, rank = (batch.space.get(name, (rows,), torch.int64) for name in ("token", "rank"))
    report = batch.space.get("report", (rows, as_int(REPORT)))
    if not most:
        return Outputs(token, report, rank)
    values, ids = batch.space.get("values", (rows, most)), batch.space.get("ids", (rows, most), torch.int32)
    return Outputs(token, report, rank, values, ids)


def run(batch: Batch, scores: Batch | None, out: Outputs) -> None:
    """A whole step: what a graph may capture. `scores` draws the filtered rows once more, from their composed rows."""
    stores = scores is not None
    prepare(batch)
    scan(batch, batch.composed if stores else None)
    if batch.asks.bound and batch.table.shape[2]:
        _relax(batch, batch.composed if stores else None)
    finish(batch, out)
    if scores is not None:
        normalise(batch, batch.composed, out.report, as_int(STORED))
        if batch.asks.top:
            top_tokens(batch, batch.composed, out, as_int(TOPPED))
        if batch.asks.filtered:
            draw_again(scores, batch.composed, out, as_int(FILTERED))
    if batch.asks.traced:
        _rank(batch, out)


def prepare(batch: Batch) -> Tensor:
    """Everything that must be known of whole rows before they are composed; returns `solved` (R, PAIRS)."""
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
            *batch.inputs(), batch.vocab, batch.table.pairs, K=slots, S=num_sets, BLOCK=SMALL_BLOCK, DTYPE=batch.code,
            num_warps=8, maxnreg=MAX_REGISTERS,
        )  # fmt: skip
    if batch.table.has_sparse:
        _run(sparse.sparse_disagreement, (rows,),
            *batch.heads(), batch.table.rule, lse, solved, batch.vocab, batch.table.pairs, K=slots, BLOCK=SMALL_BLOCK,
            DTYPE=batch.code, num_warps=8,
        )  # fmt: skip
    if batch.table.has_cascade:
        _run(cascade.cascade_share, (rows,),
            *batch.heads(), batch.table.rule, lse, solved, batch.vocab, batch.table.pairs, K=slots, BLOCK=SMALL_BLOCK,
            DTYPE=batch.code, num_warps=8,
        )  # fmt: skip
    if batch.table.has_divergence:
        _run(divergence.divergence_threshold, (rows,),
            *batch.heads(), batch.table.rule, lse, solved, batch.vocab, batch.table.pairs, K=slots, BLOCK=SMALL_BLOCK,
            DTYPE=batch.code, num_warps=8,
        )  # fmt: skip
    return solved


def _stats(batch: Batch, lse: Tensor) -> None:
    rows, slots, _ = batch.table.shape
    split = split_vocab(rows * slots, batch.vocab)
    part = batch.get("stats", (rows * slots, split.parts, as_int(stats.PART)))
    _run(stats.stats_part, (rows * slots, split.parts),
        *batch.heads(), part, batch.vocab, split.tiles, slots, split.parts, TILE=TILE, DTYPE=batch.code,
    )  # fmt: skip
    _run(stats.stats_end, (rows * slots,), batch.table.stream, part, lse, split.parts, WIDTH=split.width)


def _solve(batch: Batch, solved: Tensor) -> None:
    table, (rows, slots, _), pairs = batch.table, batch.table.shape, batch.table.pairs
    count = rows * pairs
    split = split_vocab(count, batch.vocab, BLOCK)
    chunks = alpha.CHUNKS if table.has_symmetric else 1
    lanes = as_int(alpha.LANES) * chunks
    width = as_int(alpha.PART)
    names = {
        "alpha stats": (split.parts, as_int(alpha.STATS)),
        "target": (split.parts, 1, width),
        "alpha": (split.parts, lanes, width),
    }
    stats_of, target, part = (batch.get(name, (count, *shape)) for name, shape in names.items())
    base, bracket = batch.get("base", (count, as_int(alpha.BASE))), batch.get("bracket", (count, as_int(alpha.BRACKET)))
    grid = (count, split.parts)
    shape: dict[str, Any] = {"K": slots, "SPLITS": split.parts, "BLOCK": BLOCK, "DTYPE": batch.code, "num_warps": 8}
    _run(alpha.alpha_stats, grid, *batch.heads(), stats_of, table.rule, batch.vocab, split.tiles, pairs, **shape)
    _run(alpha.alpha_centers, (count,), stats_of, table.rule, base, bracket, pairs, split.parts, WIDTH=split.width)
    _run(alpha.alpha_targets, grid, *batch.heads(), target, table.rule, base, batch.vocab, split.tiles, pairs, **shape)
    for number in range(alpha.PASSES):
        _run(alpha.alpha_pass, (*grid, chunks),
            *batch.heads(), table.rule, part, base, bracket, batch.vocab, split.tiles, pairs, COUNT=lanes, **shape,
        )  # fmt: skip
        last = int(number == alpha.PASSES - 1)
        _run(alpha.alpha_narrow, (count,),
            part, target, table.rule, base, bracket, solved, number, last, pairs, split.parts, COUNT=lanes,
            WIDTH=split.width, num_warps=8,
        )  # fmt: skip


def _flags(batch: Batch) -> dict[str, Any]:
    _, slots, num_sets = batch.table.shape
    rules, gated = batch.table.has_rules, batch.table.has_gates
    shape = {"K": slots, "S": num_sets, "RULES": rules, "GATED": gated, "TILE": TILE, "DTYPE": batch.code}
    return {**shape, **resources(rules, gated, batch.code, slots)}


def _parts(batch: Batch) -> tuple[Split, Tensor]:
    rows = batch.table.shape[0]
    split = split_vocab(rows, batch.vocab)
    return split, batch.get("parts", (rows, split.parts, as_int(decode.PART)))


def scan(batch: Batch, composed: Tensor | None, only: int = EVERY) -> None:
    """Sums of every part of the vocabulary; z is written to `composed` (R, V) where given."""
    split, part = _parts(batch)
    _run(decode.scan, (batch.table.shape[0], split.parts),
        *batch.inputs(), batch.info, batch.words, batch.params, batch.draw, part,
        part if composed is None else composed, batch.vocab, batch.words.shape[1], batch.table.pairs, split.tiles,
        split.parts, BOUND=batch.asks.bound, TRACES=batch.asks.traced, STORE=composed is not None, ONLY=only,
        **_flags(batch),
    )  # fmt: skip


def _relax(batch: Batch, composed: Tensor | None) -> None:
    """Rows whose grammar allows nothing that is plausible, once more. Which those are is known on the device alone."""
    split, part = _parts(batch)
    _run(decode.relax, (batch.table.shape[0],),
        *batch.inputs(), batch.info, batch.words, part, batch.vocab, batch.words.shape[1], batch.table.pairs,
        split.parts, WIDTH=split.width, **_flags(batch),
    )  # fmt: skip
    scan(batch, composed, as_int(RELAXED))


def finish(batch: Batch, out: Outputs, only: int = EVERY) -> None:
    """Tokens and reports from the parts."""
    split, part = _parts(batch)
    _run(decode.finish, (batch.table.shape[0],),
        *batch.inputs(), batch.info, batch.words, batch.params, batch.draw, part, out.token, out.report, out.rank,
        batch.vocab, batch.words.shape[1], batch.table.pairs, split.parts, BOUND=batch.asks.bound,
        TRACES=batch.asks.traced, ONLY=only, WIDTH=split.width, **_flags(batch),
    )  # fmt: skip


def _rank(batch: Batch, out: Outputs) -> None:
    rows, slots, _ = batch.table.shape
    split = split_vocab(rows, batch.vocab)
    _run(decode.base_rank, (rows, split.parts),
        batch.buffers, batch.table.stream, batch.info, out.token, out.rank, batch.vocab, split.tiles, slots, TILE=TILE,
        DTYPE=batch.code,
    )  # fmt: skip


def normalise(batch: Batch, composed: Tensor, report: Tensor, only: int = EVERY) -> None:
    """Log-probs from z, in place."""
    rows, slots, _ = batch.table.shape
    _run(decode.normalise, (rows, triton.cdiv(batch.vocab, TILE)),
        batch.buffers, batch.table.stream, batch.info, batch.words, composed, report, batch.vocab, batch.words.shape[1],
        slots, BOUND=batch.asks.bound, ONLY=only, TILE=TILE, DTYPE=batch.code,
        num_warps=8,  # with four, some variants spill
    )  # fmt: skip


def draw_again(scores: Batch, values: Tensor, out: Outputs, only: int = EVERY) -> None:
    """Draws from `values` (R, V), which `scores` reads, after top-k, top-p and min-p."""
    thresholds(scores, values, only)
    scan(scores, None, only)
    finish(scores, out, only)


def thresholds(scores: Batch, values: Tensor, only: int = EVERY) -> Tensor:
    """Thresholds (R, 1) of top-k, top-p and min-p over values (R, V)."""
    tau = scores.get("tau", (values.shape[0], 1))
    _run(warp.warp_threshold, (values.shape[0],),
        values, scores.info, scores.params, tau, values.shape[1], ONLY=only, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return tau


def top_tokens(batch: Batch, values: Tensor, out: Outputs, only: int = EVERY) -> None:
    """The alternatives of `out` from values (R, V), best first: winners of parts, then winners of those."""
    assert out.values is not None
    assert out.ids is not None
    (rows, count), ids, stage = out.values.shape, values, 0
    while True:
        width, chunk = values.shape[1], max(TOP_CHUNK, 2 * count)
        parts = triton.cdiv(width, chunk)
        found, chosen = out.values, out.ids
        if parts > 1:
            found = batch.get(f"top values {stage}", (rows, parts * count))
            chosen = batch.get(f"top ids {stage}", (rows, parts * count), torch.int32)
        _run(top.top_tokens, (rows, parts),
            values, ids, batch.info, found, chosen, width, chunk, parts, count, HAS_IDS=stage > 0, ONLY=only,
            BLOCK=triton.next_power_of_2(min(chunk, width)), num_warps=8,
        )  # fmt: skip
        if parts == 1:
            return
        values, ids, stage = found, chosen, stage + 1
