"""A composition as the packed tables that the kernels read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from motet.kernels.layout import ComposeRows, Index, Kind, SetRows
from motet.kernels.logits import Logits
from motet.kernels.triton.columns import (
    GATE,
    INVERSE,
    MASKS,
    PLACE,
    RULE,
    SET_KINDS,
    SETS,
    SOLVES,
    STREAM,
    WEIGHT,
    as_int,
)

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MIXED = 3
ALIGNED = 4  # added to a code, see `load.load_logits`


@dataclass(frozen=True, slots=True)
class RowTable:
    """Struct of arrays. `sets` is empty (S = 0) where no row has a mask or gate; `pairs` is how many α a row can solve
    for."""

    stream: Tensor  # tables, see `columns`
    weight: Tensor
    rule: Tensor  # the state of a step is written into it
    sets: Tensor
    value: Tensor
    has_rules: bool
    has_gates: bool
    has_solver: bool
    has_symmetric: bool
    has_discriminator: bool
    has_divergence: bool
    has_cascade: bool
    has_sparse: bool
    has_state: bool
    needs_stats: bool
    pairs: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """R, K, S."""
        return self.stream.shape[0], self.stream.shape[1], self.sets.shape[1]


@dataclass(slots=True)
class _Row:
    """One row while it is built: slots and sets in order."""

    source: list[int] = field(default_factory=list[int])
    weight: list[float] = field(default_factory=list[float])
    temperature: list[float] = field(default_factory=list[float])
    gate: list[int] = field(default_factory=list[int])
    needs: list[bool] = field(default_factory=list[bool])
    sets: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    values: list[float] = field(default_factory=list[float])
    rule: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    solves: int = 0  # how many α are reported

    def slot(self, source: int, weight: float = 0.0, temperature: float = 1.0, gate: int = -1) -> int:
        """A new slot."""
        self.source.append(source)
        self.weight.append(weight)
        self.temperature.append(temperature)
        self.gate.append(gate)
        self.needs.append(gate >= 0)
        return len(self.source) - 1

    def term(self, source: int, weight: float, temperature: float, gate: int) -> None:
        """The base's plain term goes to its own slot 0, others to new ones."""
        if source == self.source[0] and self.weight[0] == 0.0 and temperature == 1.0 and gate < 0:
            self.weight[0] = weight
        else:
            self.slot(source, weight, temperature, gate)

    def add_set(self, keep: SetRows, source: int, is_mask: bool, vocab: int) -> int:
        """A set over a slot of temperature 1 that reads `source`, a new one where there is none."""
        plain = (k for k, s in enumerate(self.source) if s == source and self.temperature[k] == 1.0)
        slot = next(plain, None)
        slot = self.slot(source) if slot is None else slot
        self.needs[slot] = True
        # 0.29 · 100 is 28.999… in floats; the same rank as in `reference.outside_set`
        entry = (slot, SET_KINDS[keep.kind], int(is_mask), max(1, math.floor(keep.value * vocab + 1e-9)))
        for number, known in enumerate(self.sets):
            if known == entry and self.values[number] == keep.value:
                return number
        self.sets.append(entry)
        self.values.append(keep.value)
        return len(self.sets) - 1


def _indices(index: Index) -> list[int]:
    if isinstance(index, slice):
        return list(range(index.start, index.stop))
    return cast("list[int]", index.tolist())


def _floats(values: Tensor) -> list[float]:
    return cast("list[float]", values.tolist())


def build_table(plan: ComposeRows, logits: Logits) -> RowTable:
    """The table of a plan over the buffers of a step, on the host: made when the batch changes, not per step."""
    rows = [_Row() for _ in range(plan.num_rows)]
    for row, source in zip(rows, _indices(plan.base), strict=True):
        row.slot(source)
    for term in plan.terms:
        temperatures = [1.0] * len(term.weight) if term.temperature is None else _floats(term.temperature)
        gates = None if term.inside is None else _indices(term.inside.source)
        each = zip(_indices(term.rows), _indices(term.source), _floats(term.weight), temperatures, strict=True)
        for i, (r, source, weight, temperature) in enumerate(each):
            gate = -1
            if term.inside is not None and gates is not None:
                gate = rows[r].add_set(term.inside, gates[i], is_mask=False, vocab=logits.vocab)
            rows[r].term(source, weight, temperature, gate)
    _add_rules(rows, plan)
    for mask in plan.masks:
        for r, source in zip(_indices(mask.rows), _indices(mask.keep.source), strict=True):
            rows[r].add_set(mask.keep, source, is_mask=True, vocab=logits.vocab)
    return _arrays(rows, plan, logits)


def _strengths(kind: Kind, streams: int) -> int:
    """How many α a rule chooses."""
    if kind is Kind.DYNAMIC:
        return (streams - 1) // 2
    return int(kind in (Kind.BUDGET, Kind.CASCADE, Kind.SPARSE))


def _add_rules(rows: Sequence[_Row], plan: ComposeRows) -> None:
    for rule in plan.rules:
        sources = [_indices(source) for source in rule.sources]
        normalised = rule.kind not in (Kind.DYNAMIC, Kind.BUDGET)
        for i, r in enumerate(_indices(rule.rows)):
            row = rows[r]
            row.rule = (float(rule.kind), *_floats(rule.param[i]))
            row.solves = _strengths(rule.kind, len(sources))
            temperatures = [1.0] * len(sources) if rule.temperature is None else _floats(rule.temperature[i])
            for k, weight in enumerate(_floats(rule.weight[i])):
                slot = row.slot(sources[k][i]) if k else 0
                row.temperature[slot] = temperatures[k]
                row.weight[slot] = 1.0 if k == 0 and not normalised else weight
                row.needs[slot] = normalised


def _arrays(rows: Sequence[_Row], plan: ComposeRows, logits: Logits) -> RowTable:
    slots = max(len(row.source) for row in rows)
    sets = max(len(row.sets) for row in rows)
    stream, weight = (
        torch.zeros(len(rows), slots, as_int(STREAM), dtype=torch.int32),
        torch.zeros(len(rows), slots, as_int(WEIGHT)),
    )
    stream[..., as_int(PLACE)] = stream[..., as_int(GATE)] = -1
    weight[..., as_int(INVERSE)] = 1.0
    chosen = torch.full((len(rows), sets, as_int(SETS)), -1, dtype=torch.int32)
    chosen[..., as_int(MASKS)] = 0
    value = torch.ones(len(rows), sets)
    rule = torch.zeros(len(rows), as_int(RULE))
    for r, row in enumerate(rows):
        rule[r, : len(row.rule)] = torch.tensor(row.rule)
        rule[r, as_int(SOLVES)] = row.solves
        for k, source in enumerate(row.source):
            buffer, place = logits.place(source)
            stream[r, k] = torch.tensor([buffer, place, row.gate[k], int(row.needs[k])])
            weight[r, k] = torch.tensor([row.weight[k], 1.0 / row.temperature[k]])
        for number, entry in enumerate(row.sets):
            chosen[r, number] = torch.tensor(entry)
            value[r, number] = row.values[number]
    kinds = {rule.kind for rule in plan.rules}
    return RowTable(
        stream,
        weight,
        rule,
        chosen,
        value,
        has_rules=bool(kinds),
        has_gates=any(gate >= 0 for row in rows for gate in row.gate),
        has_solver=bool(kinds & {Kind.DYNAMIC, Kind.BUDGET}),
        has_symmetric=any(bool((part.param[:, 1] > 0).any()) for part in plan.rules if part.kind is Kind.DYNAMIC),
        has_discriminator=Kind.DISCRIMINATOR in kinds,
        has_divergence=Kind.DIVERGENCE in kinds,
        has_cascade=Kind.CASCADE in kinds,
        has_sparse=Kind.SPARSE in kinds,
        has_state=bool(kinds & {Kind.DISCRIMINATOR, Kind.ROUTED}),
        needs_stats=any(any(row.needs) for row in rows),
        pairs=plan.pairs,
    )


def score_table(rows: int) -> RowTable:
    """Rows that read one float32 matrix each their own line, cut at a threshold: for drawing from composed scores."""
    stream = torch.zeros(rows, 1, as_int(STREAM), dtype=torch.int32)
    stream[:, 0, as_int(PLACE)] = torch.arange(rows, dtype=torch.int32)
    stream[:, 0, as_int(GATE)] = -1
    sets = torch.zeros(rows, 1, as_int(SETS), dtype=torch.int32)
    sets[..., as_int(MASKS)] = 1
    return RowTable(
        stream,
        torch.ones(rows, 1, as_int(WEIGHT)),
        torch.zeros(rows, as_int(RULE)),
        sets,
        torch.ones(rows, 1),
        has_rules=False,
        has_gates=False,
        has_solver=False,
        has_symmetric=False,
        has_discriminator=False,
        has_divergence=False,
        has_cascade=False,
        has_sparse=False,
        has_state=False,
        needs_stats=False,
    )


def buffer_table(buffers: Sequence[Tensor]) -> tuple[Tensor, int]:
    """((B, 3) int64 addresses, row strides and dtypes, on the host; the kernels' dtype code).

    Raises:
        ValueError: a buffer is of another dtype, or its tokens are not next to one another.
    """
    entries: list[tuple[int, int, int]] = []
    for buffer in buffers:
        if buffer.dtype not in DTYPES:
            allowed = ", ".join(str(dtype) for dtype in DTYPES)
            raise ValueError(f"logits of {buffer.dtype}: the kernels read {allowed}")
        if buffer.stride(-1) != 1 and buffer.shape[-1] > 1:
            raise ValueError(f"logits with strides {buffer.stride()}: tokens of a row must be next to one another")
        entries.append((buffer.data_ptr(), buffer.stride(0), DTYPES[buffer.dtype]))
    codes = {code for _, _, code in entries}
    code = codes.pop() if len(codes) == 1 else MIXED
    if all(b.data_ptr() % 16 == 0 and (b.stride(0) % 8 == 0 or b.shape[0] == 1) for b in buffers):
        code += ALIGNED
    return torch.tensor(entries, dtype=torch.int64), code


def seeds(uniform: Sequence[float]) -> list[int]:
    """Seeds below 2⁶³ from one draw in (0, 1] per row and step: all 53 bits of it."""
    return [int(math.ldexp(u, 53)) * 0x9E3779B97F4A7C15 & 0x7FFFFFFFFFFFFFFF for u in uniform]
