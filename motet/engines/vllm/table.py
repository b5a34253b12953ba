"""Which request sits in which row of the running batch, as the composite model needs to know it.

The forward writes (row, position, token) beside each hidden state; `compute_logits` asks the runner's batch whose row
that is. A position's distribution then depends on nothing but its row's tokens: drawing, verifying drafts and scoring
prompts are alike. What was drawn is left here for the runner's sampler.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from motet.composers.plan import Plan, single
from motet.composers.timeline import Timeline
from motet.engines.base import SamplingParams
from motet.engines.decoding import AllowedTokens
from motet.engines.vllm.wire import Probe, RowSpec, probe_of


class Uniforms:
    """The draws in (0, 1] of one choice: number i is the same however often it is asked for."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key)
        self._drawn: list[float] = []

    def __getitem__(self, index: int) -> float:
        while len(self._drawn) <= index:
            self._drawn.append(1.0 - self._random.random())
        return self._drawn[index]


@dataclass(eq=False)
class Row:
    """One request in the batch. `output` is the runner's own list of drawn tokens, which grows."""

    spec: RowSpec
    prompt: Sequence[int]
    output: Sequence[int]

    @cached_property
    def timeline(self) -> Timeline:
        return Timeline(self.spec.plan)

    @cached_property
    def allowed(self) -> AllowedTokens | None:
        return None if self.spec.draw is None else AllowedTokens.of(self.spec.draw)

    @cached_property
    def uniforms(self) -> Uniforms:
        return Uniforms(self.spec.key)

    @cached_property
    def models(self) -> frozenset[str]:
        """All that its composition reads, also where other linked requests read them for it."""
        return frozenset(stream.model for stream in self.spec.plan.streams)

    @property
    def last(self) -> int:
        """The position of the last known token, behind which the next one is drawn."""
        return len(self.prompt) + len(self.output) - 1


@dataclass(frozen=True, slots=True)
class Point:
    """One position of a row as an answer (see `decoding.Answer`), and the token behind it: known and to be reported, or
    to be drawn.

    `drafts` are the tokens behind the row's last one up to this position: guesses that are being verified.
    """

    row: Row
    position: int
    drafts: tuple[int, ...] = ()

    @property
    def is_probed(self) -> bool:
        """Whether the token behind is known and to be reported."""
        probe = self.row.spec.probe
        if probe is None:
            return False
        return probe.start - 1 <= self.position < len(self.row.prompt) + len(self.row.spec.forced) - 1

    @property
    def is_next(self) -> bool:
        """Whether the runner takes a token here: behind the last one, or behind a draft."""
        return self.row.spec.draw is not None and self.position >= self.row.last

    @property
    def is_drawn(self) -> bool:
        """Whether the request's own masks hold for the token behind."""
        return self.row.spec.draw is not None and self.position + 1 >= self.row.spec.drawn_from

    @property
    def report(self) -> Probe | None:
        """What is reported about the token beside its log-prob and alternatives, as a payload; None: no more."""
        if self.is_probed:
            return self.row.spec.probe
        if self.is_next and self.sampling.reports_more:
            return probe_of(self.position + 1, self.sampling)
        return None

    @property
    def forced(self) -> int:
        """The token behind where that is known, else −1."""
        return self.token(self.position + 1) if self.is_probed else -1

    def token(self, index: int) -> int:
        """A token that was read, forced, drawn, or guessed."""
        size = len(self.row.prompt)
        if index < size:
            return self.row.prompt[index]
        known = self.row.spec.forced or self.row.output
        return known[index - size] if index - size < len(known) else self.drafts[index - self.row.last - 1]

    def tokens(self, start: int) -> list[int]:
        """From `start` up to and with this position."""
        return [self.token(index) for index in range(start, self.position + 1)]

    @property
    def plan(self) -> Plan:
        """The plan of the token behind."""
        return self.row.timeline.at(lambda: self.written)

    @property
    def written(self) -> list[int]:
        """What counts for rules as written by the composition."""
        return self.tokens(self.row.spec.written_from)

    @property
    def sampling(self) -> SamplingParams:
        assert self.row.spec.draw is not None
        return self.row.spec.draw

    @property
    def allowed(self) -> AllowedTokens | None:
        return self.row.allowed

    @property
    def ends(self) -> tuple[int, ...]:
        return self.row.spec.ends

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return () if self.sampling.ignore_eos and not self.row.spec.grammar else self.row.spec.ends

    @property
    def num_generated(self) -> int:
        return self.position + 1 - self.row.spec.drawn_from

    @property
    def generated(self) -> list[int]:
        return self.tokens(self.row.spec.drawn_from)

    @property
    def counts(self) -> Mapping[int, int]:
        return Counter(self.generated)

    @property
    def seen(self) -> set[int]:
        return set(self.tokens(0))

    def uniform(self) -> float:
        """The same when a token is drawn again."""
        return self.row.uniforms[self.num_generated]


class Batch(Protocol):
    """The running batch, as one kind of runner keeps it."""

    def row(self, index: int) -> Row | None:
        """The request in that place of the batch; None where there is none, or one that names no composition."""
        ...

    def rows(self) -> list[Row | None]:
        """All of them, in order; empty in a warm-up."""
        ...


class NoBatch:
    """Before the runner is bound, and in its warm-up."""

    def row(self, index: int) -> Row | None:
        return None

    def rows(self) -> list[Row | None]:
        return []


@dataclass(frozen=True, slots=True)
class DrawnStep:
    """What was drawn behind R positions, for the runner's sampler.

    `tokens` (R, 1 + A) int64 and `logprobs` (R, 1 + A) float32: the drawn token and its composed log-prob, then what
    is reported beside it: alternatives, or a payload at token ids 0, 1, …. `others` are the positions whose token
    vLLM's own sampler draws from the logits.
    """

    tokens: Tensor
    logprobs: Tensor
    others: tuple[int, ...] = ()

    def reported(self, theirs: Any, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`tokens` and `logprobs` with vLLM's own at these places, as wide as the wider of both.

        Args:
            theirs: vLLM's LogprobsTensors of the R positions; None: it reports nothing.
        """
        if theirs is None:
            return self.tokens, self.logprobs
        width = max(self.tokens.shape[1], theirs.logprob_token_ids.shape[1])
        tokens, logprobs, ids, values = (
            pad(part, (0, width - part.shape[1]))  # columns that no request reads
            for part in (self.tokens, self.logprobs, theirs.logprob_token_ids, theirs.logprobs)
        )
        is_theirs = torch.zeros(len(tokens), 1, dtype=torch.bool, device=tokens.device)
        is_theirs[list(places)] = True
        return torch.where(is_theirs, ids.to(tokens.dtype), tokens), torch.where(is_theirs, values, logprobs)


@dataclass
class Table:
    """`members`: name → number of the distinct checkpoint that holds it; `default` is for requests that name none;
    `skips`: a step runs only the members that its requests read."""

    members: dict[str, int] = field(default_factory=dict[str, int])
    skips: bool = False
    ends: tuple[int, ...] = ()
    batch: Batch = field(default_factory=NoBatch)
    default: Plan = field(default_factory=lambda: single(""))
    step: DrawnStep | None = None

    def configure(self, members: Mapping[str, int], ends: Sequence[int], *, skips: bool = False) -> None:
        self.members, self.ends, self.skips = dict(members), tuple(ends), skips
        self.default = single(next(iter(members)))

    def running(self) -> list[int]:
        """Numbers of the distinct checkpoints that this step runs, ascending.

        All of them in a warm-up. A captured graph of whole steps is one: it runs more than is read, never less.
        """
        rows = self.batch.rows() if self.skips else []
        read = {name for row in rows for name in ((self.default.streams[0].model,) if row is None else row.models)}
        numbers = {self.members[name] for name in read if name in self.members}
        return sorted(numbers or set(self.members.values()))  # a row that nobody has checked may name nobody

    def take_step(self) -> DrawnStep | None:
        """What the last logits have drawn, once; None: vLLM's own sampler draws."""
        step, self.step = self.step, None
        return step


_tables: dict[int, Table] = {}


def table_of(static_forward_context: object) -> Table:
    """The table of one engine: its runner and its model find it by an object that both hold."""
    return _tables.setdefault(id(static_forward_context), Table())
