"""What a step does with the members' logits: the positions that they belong to are composed, drawn, and reported."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn.functional import pad

from motet.composers.rows import Place, compose_rows, rule_places
from motet.engines.edits import allowed_tokens, banned_tokens, grammar_mask, penalties, sample_rows
from motet.engines.traces import top_of, trace_of
from motet.engines.vllm.items import Item, items_of, points_of
from motet.engines.vllm.matchers import Matchers
from motet.engines.vllm.payload import Probed, write_payload
from motet.engines.vllm.table import Step, Table
from motet.kernels.decode import Decoded, DecodeRows, Kernels, decode
from motet.kernels.layout import ComposeRows, edits_or_none, rows_index
from motet.kernels.logits import Logits

log = logging.getLogger(__name__)
IMPOSSIBLE = -1e30  # finite, so that what vLLM itself masks stays the stronger; its exponential is 0


class Layout:
    """The rows of a composition as the kernels read them; kept, since they seldom change while decoding."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last: tuple[object, ComposeRows] | None = None

    def streams(self, item: Item, count: int) -> tuple[int, ...]:
        """The row of each stream in the members' joined logits of `count` positions.

        Raises:
            KeyError: a model that is no member.
        """
        pairs = zip(item.plan.streams, item.reads, strict=True)
        return tuple(self._table.members[stream.model] * count + at for stream, at in pairs)

    def __call__(self, items: Sequence[Item], logits: Logits, count: int) -> ComposeRows:
        like = logits.like()
        key = (like.device, like.dtype, count, [(item.plan, item.reads) for item in items])
        if self._last is None or self._last[0] != key:
            streams = [self.streams(item, count) for item in items]
            self._last = (key, compose_rows([item.plan for item in items], streams, like))
        return self._last[1]


class Composer:
    """Composes and draws with the project's kernels.

    Args:
        table: whose rows the positions are; gets the `Step` of what was drawn.
        matchers: follow the rows' grammars.
    """

    def __init__(self, table: Table, kernels: Kernels, matchers: Matchers | None = None) -> None:
        self._table = table
        self._matchers = matchers or Matchers()
        self._kernels = kernels
        self._reported, self._plain = Layout(table), Layout(table)

    def __call__(
        self, logits: Sequence[Tensor], rows: Sequence[int], positions: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """The distributions behind R positions as vLLM's sampler and scorer read them, (R, V).

        Composed log-probs for requests that vLLM draws itself, payloads for scored tokens; what this engine has drawn
        is the table's step, and its rows here mean nothing.

        Args:
            logits: (R, V) of each distinct member.
            rows: (R,) places in the batch.
            positions: (R,) of the tokens.
            tokens: (R,) what is read there, drafts included.
        """
        joined = Logits(logits)
        items, order = items_of(points_of(self._table.batch, rows, positions, tokens), self._table.default)
        reported = [i for i, item in enumerate(items) if item.is_reported]
        told, values = self._told(joined, [items[i] for i in reported], len(rows))
        self._table.step = self._step(items, order, reported, told, values)
        scored = [(n, i) for n, i in enumerate(reported) if not items[i].is_next]
        plain = [i for i, item in enumerate(items) if not item.is_reported and not item.is_idle]
        if not scored and not plain:
            return logits[0]
        out = torch.full((len(items), joined.vocab), -math.inf, device=joined.device)
        for n, i in scored:
            size = items[i].size
            out[i, :size] = values[n, 1 : 1 + size]
        if plain:
            out[plain] = self._composed(joined, [items[i] for i in plain], len(rows))
        return out if order == list(range(len(rows))) else out[torch.tensor(order, device=out.device)]

    def _told(self, logits: Logits, items: Sequence[Item], count: int) -> tuple[Tensor, Tensor]:
        """Tokens and numbers (I, 1 + A). If that fails, each item alone: the guilty one's log-prob is no number."""
        if not items:
            return torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1))
        try:
            return self._report(logits, items, count)
        except Exception:
            if len(items) > 1:
                return _joined([self._told(logits, [item], count) for item in items])
            log.exception("composing or drawing failed")
            return _failed(items[0], logits.device)

    def _report(self, logits: Logits, items: Sequence[Item], count: int) -> tuple[Tensor, Tensor]:
        width = max(item.size for item in items)
        inputs = _inputs(self._reported(items, logits, count), logits, items, self._matchers)
        decoded = decode(self._kernels, logits, inputs)
        tokens = torch.zeros((len(items), 1 + width), dtype=torch.int64, device=logits.device)
        values = torch.full(tokens.shape, -math.inf, dtype=torch.float32, device=logits.device)
        tokens[:, 0], values[:, 0] = decoded.token, decoded.logprob
        if decoded.top_tokens is not None and decoded.top_values is not None:
            shown = min(width, decoded.top_tokens.shape[1])
            tokens[:, 1 : 1 + shown] = decoded.top_tokens[:, :shown]
            values[:, 1 : 1 + shown] = decoded.top_values[:, :shown]
        for i, item in enumerate(items):
            numbers = self._payload(logits, decoded, i, item, count)
            if numbers:
                tokens[i, 1 : 1 + len(numbers)] = torch.arange(len(numbers), device=logits.device)
                values[i, 1 : 1 + len(numbers)] = values.new_tensor(numbers)
        return tokens, values

    def _payload(self, logits: Logits, decoded: Decoded, number: int, item: Item, count: int) -> list[float]:
        """The numbers of an item that reports more than log-probs."""
        probe = item.probe
        if probe is None:
            return []
        trace = None
        if probe.trace_top is not None:
            members = logits.logprobs(rows_index(self._reported.streams(item, count)))
            trace = trace_of(members, decoded, number, probe.trace_top)
        return write_payload(
            Probed(float(decoded.logprob[number]), top_of(decoded, number, probe.top), trace), item.plan
        )

    def _step(
        self, items: Sequence[Item], order: Sequence[int], reported: Sequence[int], tokens: Tensor, values: Tensor
    ) -> Step | None:
        """None where nothing was drawn."""
        if not any(item.is_next for item in items):
            return None
        places = {i: n for n, i in enumerate(reported)}
        index = torch.tensor([places.get(i, 0) for i in order], device=tokens.device)
        others = tuple(number for number, i in enumerate(order) if not items[i].is_idle and i not in places)
        return Step(tokens[index], values[index], others)

    def _composed(self, logits: Logits, items: Sequence[Item], count: int) -> Tensor:
        """Composed log-probs (I, V); an item that cannot be composed ends its answer."""
        try:
            rules = edits_or_none(_rule_places(items), logits.like())
            composed = self._kernels.compose(logits, self._plain(items, logits, count), rules, None).logprobs
            return composed.masked_fill(composed == -math.inf, IMPOSSIBLE)
        except Exception:
            if len(items) > 1:
                return torch.cat([self._composed(logits, [item], count) for item in items])
            log.exception("composing failed")
            ended = torch.full((1, logits.vocab), IMPOSSIBLE, device=logits.device)
            ended[0, list(self._table.ends)] = 0.0
            return ended


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One under the other, as wide as the widest."""
    width = max(tokens.shape[1] for tokens, _ in parts)
    tokens = [pad(tokens, (0, width - tokens.shape[1])) for tokens, _ in parts]
    values = [pad(values, (0, width - values.shape[1])) for _, values in parts]
    return torch.cat(tokens), torch.cat(values)


def _failed(item: Item, device: torch.device) -> tuple[Tensor, Tensor]:
    """Any token, and numbers that are none."""
    tokens = torch.tensor([[0, *range(item.size)]], device=device)
    return tokens, torch.full(tokens.shape, math.nan, device=device)


def _inputs(rows: ComposeRows, logits: Logits, items: Sequence[Item], matchers: Matchers) -> DecodeRows:
    """The request's own masks and penalties hold for what it draws, not for the prompt that it scores."""
    like = logits.like()
    points = [item.point for item in items if item.point is not None]
    drawn = [(i, point) for i, point in enumerate(points) if point.is_drawn]
    bias, repetition, presence = penalties(drawn, like, logits.vocab)
    return DecodeRows(
        plan=rows,
        forced=[point.forced for point in points],
        sampling=sample_rows([point.sampling for point in points]),
        uniform=[point.uniform for point in points],
        rules=edits_or_none(_rule_places(items), like),
        banned=edits_or_none([(i, t, 0.0) for i, point in drawn for t in banned_tokens(point)], like),
        allowed=allowed_tokens(drawn, like),
        grammar=grammar_mask([(i, m, point.generated) for i, point in drawn if (m := matchers.of(point.row))], like),
        bias=bias,
        repetition=repetition,
        presence=presence,
        top=[item.top for item in items],
        trace=[i for i, item in enumerate(items) if item.is_traced],
    )


def _rule_places(items: Sequence[Item]) -> list[Place]:
    ruled = [(i, item.point, item.plan.rules) for i, item in enumerate(items)]
    return list(
        chain.from_iterable(
            rule_places(i, rules, point.written, point.row.spec.ends)
            for i, point, rules in ruled
            if rules is not None and point is not None
        )
    )
