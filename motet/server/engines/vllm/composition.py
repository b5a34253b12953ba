"""The composed distributions of a step, from the members' logits and the rows that the positions belong to."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from motet.composers.plan import Plan
from motet.composers.rows import Place, compose_rows, rule_places
from motet.kernels.decode import DecodeRows, Kernels, compose_restricted
from motet.kernels.layout import ComposeRows, edits_or_none, rows_index
from motet.kernels.logits import Logits
from motet.kernels.reference import Composed
from motet.kernels.sampling import SampleRows
from motet.server.engines.edits import banned_tokens, grammar_mask
from motet.server.engines.vllm.matchers import Matchers
from motet.server.engines.vllm.payload import payload_row
from motet.server.engines.vllm.table import Drawn, Row, Table

log = logging.getLogger(__name__)
IMPOSSIBLE = -1e30  # finite, so that a grammar's −inf stays the stronger one; its exponential is 0


@dataclass(frozen=True, slots=True)
class Item:
    """One position: `streams[k]` is the row of stream k in the members' logits; `row` None is a row of vLLM's own."""

    row: Row | None
    position: int
    plan: Plan
    streams: tuple[int, ...]


class Composer:
    """Composes with the project's kernels; keeps the layout of the last step, which seldom changes while decoding."""

    def __init__(self, table: Table, kernels: Kernels, matchers: Matchers | None = None) -> None:
        self._table = table
        self._matchers = matchers or Matchers()
        self._kernels = kernels
        self._layout: tuple[list[tuple[Plan, tuple[int, ...]]], ComposeRows] | None = None

    def __call__(self, logits: Sequence[Tensor], rows: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Composed log-probs (R, V), float32.

        Args:
            logits: (R, V) of each distinct member.
            rows: (R,) places in the batch.
            positions: (R,) of the token behind which each distribution stands.
        """
        joined = Logits(logits)
        items, order = self._items(rows, positions)
        composed = self._contained(joined, items)
        return composed if order == list(range(len(rows))) else composed[torch.tensor(order, device=composed.device)]

    def _items(self, rows: Sequence[int], positions: Sequence[int]) -> tuple[list[Item], list[int]]:
        """The distinct distributions, and which of them each of the R rows gets: linked rows share one."""
        found = [self._table.rows.get(index) for index in rows]
        groups = _complete_groups(found, positions)
        items: list[Item] = []
        order: list[int] = []
        shared: dict[str, int] = {}
        for number, (row, position) in enumerate(zip(found, positions, strict=True)):
            link = None if row is None else row.spec.link
            places = None if link is None else groups.get(link.group)
            if link is None or places is None:
                order.append(len(items))
                items.append(self._item(row, position, [number], len(rows)))
                continue
            order.append(shared.setdefault(link.group, len(items)))
            if order[-1] == len(items):  # the group's first row here: composed once, as the base's context sees it
                base = places[0]
                reads = [places[view] for view in link.views]
                items.append(self._item(found[base], positions[base], reads, len(rows)))
        return items, order

    def _item(self, row: Row | None, position: int, reads: Sequence[int], count: int) -> Item:
        """`reads`: the place of each stream's context among the `count` rows, or the one that all streams read."""
        plan = self._table.default if row is None else row.spec.plan
        places = reads if len(reads) > 1 else [*reads] * len(plan.streams)
        members = [self._table.members[stream.model] for stream in plan.streams]
        return Item(row, position, plan, tuple(m * count + at for m, at in zip(members, places, strict=True)))

    def _contained(self, logits: Logits, items: Sequence[Item]) -> Tensor:
        """All at once; if that fails, each alone, so that only the guilty one is lost: it becomes no number."""
        try:
            return self._composed(logits, items)
        except Exception:
            if len(items) > 1:
                return torch.cat([self._contained(logits, [item]) for item in items])
            log.exception("composing failed")
            return torch.full((1, logits.vocab), math.nan, dtype=logits.dtype, device=logits.device)

    def _composed(self, logits: Logits, items: Sequence[Item]) -> Tensor:
        inputs = _inputs(self._rows(items, logits.like()), logits, items, self._matchers)
        exact = compose_restricted(self._kernels, logits, inputs)
        composed = exact.logprobs.masked_fill(exact.logprobs == -math.inf, IMPOSSIBLE)
        for i, item in enumerate(items):
            if item.row is not None and item.row.is_probed(item.position):
                composed[i] = _report(logits, exact, i, item.row, item)
        return composed

    def _rows(self, items: Sequence[Item], like: Tensor) -> ComposeRows:
        key = [(item.plan, item.streams) for item in items]
        if self._layout is None or self._layout[0] != key:
            rows = compose_rows([item.plan for item in items], [item.streams for item in items], like)
            self._layout = (key, rows)
        return self._layout[1]


def _complete_groups(rows: Sequence[Row | None], positions: Sequence[int]) -> dict[str, dict[int, int]]:
    """group → view → number of its row, of the groups whose contexts are all here and equally far."""
    seen: dict[str, dict[int, int]] = {}
    ages: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for number, (row, position) in enumerate(zip(rows, positions, strict=True)):
        if row is not None and row.spec.link is not None:
            link = row.spec.link
            seen.setdefault(link.group, {})[link.view] = number
            ages.setdefault(link.group, set()).add(position - len(row.prompt))
            sizes[link.group] = link.size
    return {
        group: places
        for group, places in seen.items()
        if len(places) == sizes[group] and len(ages[group]) == 1 and min(ages[group]) >= -1
    }


def _inputs(rows: ComposeRows, logits: Logits, items: Sequence[Item], matchers: Matchers) -> DecodeRows:
    """Nothing is drawn here. The request's own masks hold for what it draws, not for the prompt that it scores."""
    like = logits.like()
    count = len(items)
    drawn = [
        (i, Drawn(item.row, item.position))
        for i, item in enumerate(items)
        if item.row is not None and item.row.is_drawn(item.position)
    ]
    return DecodeRows(
        plan=rows,
        forced=[0] * count,
        sampling=SampleRows([0.0] * count, [0] * count, [1.0] * count, [0.0] * count),
        uniform=[1.0] * count,
        rules=edits_or_none(_rule_places(items), like),
        banned=edits_or_none([(i, t, 0.0) for i, row in drawn for t in banned_tokens(row)], like),
        allowed=[
            (i, torch.tensor(row.sampling.allowed_token_ids, dtype=torch.int64, device=like.device))
            for i, row in drawn
            if row.sampling.allowed_token_ids is not None
        ],
        grammar=grammar_mask(
            [(i, m, row.generated) for i, row in drawn if (m := matchers.of(row.row)) is not None], like
        ),
    )


def _rule_places(items: Sequence[Item]) -> list[Place]:
    return [
        place
        for i, item in enumerate(items)
        if item.plan.rules is not None and item.row is not None
        for place in rule_places(i, item.plan.rules, _written(item.row, item.position), item.row.spec.ends)
    ]


def _written(row: Row, position: int) -> list[int]:
    """Tokens up to and with `position` that count as written by the composition."""
    return row.tokens(row.spec.written_from, position + 1)


def _report(logits: Logits, exact: Composed, number: int, row: Row, item: Item) -> Tensor:
    """The row of a probed position: numbers about the token that follows it."""
    assert row.spec.probe is not None
    members = logits.logprobs(rows_index(item.streams))
    alpha = cast("list[float]", exact.alpha[number].tolist())
    token = row.token(item.position + 1)
    return payload_row(members, exact.logprobs[number], alpha, token, row.spec.probe, item.plan)
