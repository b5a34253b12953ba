"""What a step does with the members' logits: the positions that they belong to are composed, drawn, and reported."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from motet.composers.rows import compose_rows
from motet.engines.base import Grammar, Matcher
from motet.engines.decoding import confidence_of, decode_rows, rule_edits, top_of, trace_of, voiced_rows
from motet.engines.grammars import Grammars
from motet.engines.vllm.items import Item, items_of, points_of
from motet.engines.vllm.table import DrawnStep, Row, Table
from motet.engines.vllm.wire import Probed, RowSpec, write_payload
from motet.kernels.decode import Decoded, Kernels, decode
from motet.kernels.layout import ComposeRows, rows_index
from motet.kernels.logits import Logits

log = logging.getLogger(__name__)

TokenizerSource = tuple[str, str | None]  # folder or hub id, and revision

IMPOSSIBLE = -1e30  # finite, so that what vLLM itself masks stays the stronger; its exponential is 0


class Layout:
    """The rows of a composition as the kernels read them; kept, since they seldom change while decoding."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._last: tuple[object, ComposeRows] | None = None
        self._places: dict[int, int] = {}

    def join(self, members: Sequence[int]) -> None:
        """Says whose logits are joined in this step, by their numbers."""
        self._places = {number: place for place, number in enumerate(members)}

    def streams(self, item: Item, count: int) -> tuple[int, ...]:
        """The row of each stream in the members' joined logits of `count` positions.

        Raises:
            KeyError: a model that is no member, or was not run.
        """
        pairs = zip(item.plan.streams, item.reads, strict=True)
        return tuple(self._places[self._table.members[stream.model]] * count + at for stream, at in pairs)

    def __call__(self, items: Sequence[Item], logits: Logits, count: int) -> ComposeRows:
        like = logits.like()
        key = (like.device, like.dtype, count, list(self._places), [(item.plan, item.reads) for item in items])
        if self._last is None or self._last[0] != key:
            streams = [self.streams(item, count) for item in items]
            self._last = (key, compose_rows([item.plan for item in items], streams, like))
        return self._last[1]


class Matchers:
    """Finds the matcher of a row, whose grammar is compiled here once more from its text; a tokenizer is read when a
    row first needs it.

    Args:
        members: name → {"path", "revision", "tokenizer"}, as in the composite's configuration.
        vocab_size: width of the masks.
    """

    def __init__(self, members: Mapping[str, Mapping[str, Any]] | None = None, vocab_size: int = 0) -> None:
        self._sources = {name: _source(member) for name, member in (members or {}).items()}
        self._vocab_size = vocab_size
        self._grammars: dict[TokenizerSource, Grammars] = {}
        self._of_rows: WeakKeyDictionary[Row, Matcher] = WeakKeyDictionary()

    def of(self, row: Row) -> Matcher | None:
        """None for a row without a grammar.

        Raises:
            GrammarError: it cannot be compiled here.
        """
        if not row.spec.grammar and row.spec.thought is None:
            return None
        if row not in self._of_rows:
            self._of_rows[row] = self._grammar(row.spec).start(row.spec.ends)
        return self._of_rows[row]

    def _grammar(self, spec: RowSpec) -> Grammar:
        compiler = self._compiler(spec.plan.streams[0].model)
        grammar: Grammar | None = compiler.compile(spec.grammar) if spec.grammar else None
        if spec.thought is not None:
            grammar = compiler.after_thought(spec.thought, grammar)
        assert grammar is not None
        return grammar if spec.closing is None else compiler.closing(grammar, spec.closing)

    def _compiler(self, base: str) -> Grammars:
        from motet.models.tokenizer import Tokenizer

        source = self._sources[base]
        if source not in self._grammars:
            self._grammars[source] = Grammars(Tokenizer.load(*source), self._vocab_size, is_checked=True)
        return self._grammars[source]


class Composer:
    """Composes and draws with the project's kernels.

    Args:
        table: whose rows the positions are; gets the `DrawnStep` of what was drawn.
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
            logits: (R, V) of each member that the step runs (`Table.running`).
            rows: (R,) places in the batch.
            positions: (R,) of the tokens.
            tokens: (R,) what is read there, drafts included.
        """
        joined = Logits(logits)
        for layout in (self._reported, self._plain):
            layout.join(self._table.running())
        items, order = items_of(points_of(self._table.batch, rows, positions, tokens), self._table.default)
        reported = [i for i, item in enumerate(items) if item.is_reported]
        drawn, values = self._drawn(joined, [items[i] for i in reported], len(rows))
        self._table.step = self._step(items, order, reported, drawn, values)
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

    def _drawn(self, logits: Logits, items: Sequence[Item], count: int) -> tuple[Tensor, Tensor]:
        """Tokens and numbers (I, 1 + A). If that fails, each item alone: the failing item's log-prob is NaN."""
        if not items:
            return torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1))
        try:
            return self._report(logits, items, count)
        except Exception:
            if len(items) > 1:
                return _joined([self._drawn(logits, [item], count) for item in items])
            log.exception("composing or drawing failed")
            return _failed(items[0], logits.device)

    def _report(self, logits: Logits, items: Sequence[Item], count: int) -> tuple[Tensor, Tensor]:
        width = max(item.size for item in items)
        matchers = [self._matchers.of(item.answer.row) if item.is_drawn else None for item in items]
        rows = decode_rows(self._reported(items, logits, count), logits, items, matchers)
        decoded = decode(self._kernels, logits, rows)
        voiced = (item.probe is not None and item.probe.reads_rows for item in items)
        composed = voiced_rows(self._kernels, logits, rows, voiced)
        tokens = torch.zeros((len(items), 1 + width), dtype=torch.int64, device=logits.device)
        values = torch.full(tokens.shape, -math.inf, dtype=torch.float32, device=logits.device)
        tokens[:, 0], values[:, 0] = decoded.token, decoded.logprob
        if decoded.top_tokens is not None and decoded.top_values is not None:
            shown = min(width, decoded.top_tokens.shape[1])
            tokens[:, 1 : 1 + shown] = decoded.top_tokens[:, :shown]
            values[:, 1 : 1 + shown] = decoded.top_values[:, :shown]
        for i, item in enumerate(items):
            numbers = self._payload(logits, decoded, i, item, count, composed)
            if numbers:
                tokens[i, 1 : 1 + len(numbers)] = torch.arange(len(numbers), device=logits.device)
                values[i, 1 : 1 + len(numbers)] = values.new_tensor(numbers)
        return tokens, values

    def _payload(
        self, logits: Logits, decoded: Decoded, number: int, item: Item, count: int, composed: Tensor | None
    ) -> list[float]:
        """The numbers of an item that reports more than log-probs."""
        probe = item.probe
        if probe is None:
            return []
        trace = None
        if probe.trace_top is not None:
            members = logits.logprobs(rows_index(self._reported.streams(item, count)))
            voiced = composed if probe.members else None
            trace = trace_of(item.plan, members, decoded, number, probe.trace_top, voiced)
        sure = confidence_of(composed, number, probe.confidence)
        top = top_of(decoded, number, probe.top)
        return write_payload(Probed(float(decoded.logprob[number]), top, trace, sure), item.plan)

    def _step(
        self, items: Sequence[Item], order: Sequence[int], reported: Sequence[int], tokens: Tensor, values: Tensor
    ) -> DrawnStep | None:
        """None where nothing was drawn."""
        if not any(item.is_next for item in items):
            return None
        places = {i: n for n, i in enumerate(reported)}
        index = torch.tensor([places.get(i, 0) for i in order], device=tokens.device)
        others = tuple(number for number, i in enumerate(order) if not items[i].is_idle and i not in places)
        return DrawnStep(tokens[index], values[index], others)

    def _composed(self, logits: Logits, items: Sequence[Item], count: int) -> Tensor:
        """Composed log-probs (I, V); an item that cannot be composed ends its answer."""
        try:
            plan, rules = self._plain(items, logits, count), rule_edits(items, logits.like())
            composed = self._kernels.compose(logits, plan, rules, None).logprobs
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


def _source(member: Mapping[str, Any]) -> TokenizerSource:
    path, revision = member.get("tokenizer") or (member["path"], member.get("revision"))
    return str(path), revision
