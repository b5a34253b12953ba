"""Which request sits in which row of the running batch, as the composite model needs to know it.

The carrier fills the table before each forward; the forward writes (row, position) beside each hidden state;
`compute_logits` looks both up here. A position's distribution then depends on nothing but its row's tokens: sampling
and prompt log-probs are alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from motet.composers.plan import Plan, single
from motet.server.engines.base import SamplingParams
from motet.server.engines.vllm.wire import RowSpec


class Uniforms:
    """The draws in (0, 1] of one choice: number i is the same however often it is asked for."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._restart()

    def _restart(self) -> None:
        self._random = random.Random(self._key)
        self._count, self._last = 0, 1.0

    def __getitem__(self, index: int) -> float:
        if index < self._count - 1:  # a preempted choice draws again what it drew
            self._restart()
        while self._count <= index:
            self._last = 1.0 - self._random.random()
            self._count += 1
        return self._last


@dataclass(eq=False)
class Row:
    """One request in the batch. `output` is vLLM's own list, which grows."""

    spec: RowSpec
    prompt: Sequence[int]
    output: Sequence[int]

    @cached_property
    def uniforms(self) -> Uniforms:
        return Uniforms(self.spec.key)

    @property
    def last(self) -> int:
        """The position behind which the next token is drawn."""
        return len(self.prompt) + len(self.output) - 1

    def token(self, index: int) -> int:
        """A token that is known: read, forced or drawn."""
        size = len(self.prompt)
        if index < size:
            return self.prompt[index]
        return (self.spec.forced or self.output)[index - size]

    def tokens(self, start: int, end: int) -> list[int]:
        return [self.token(index) for index in range(start, end)]

    def is_drawn(self, position: int) -> bool:
        """Whether the request's own masks hold for the token behind `position`."""
        return self.spec.draw is not None and position + 1 >= self.spec.drawn_from

    def is_probed(self, position: int) -> bool:
        """Whether the token behind `position` is known and to be reported."""
        probe = self.spec.probe
        return probe is not None and probe.start - 1 <= position < len(self.prompt) + len(self.spec.forced) - 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row as it stands when the token behind `position` is drawn: see `edits.Drawing`."""

    row: Row
    position: int

    @property
    def sampling(self) -> SamplingParams:
        assert self.row.spec.draw is not None
        return self.row.spec.draw

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return () if self.sampling.ignore_eos else self.row.spec.ends

    @property
    def num_generated(self) -> int:
        return self.position + 1 - self.row.spec.drawn_from

    @property
    def generated(self) -> list[int]:
        return self.row.tokens(self.row.spec.drawn_from, self.position + 1)

    @property
    def counts(self) -> Mapping[int, int]:
        return Counter(self.generated)

    @property
    def seen(self) -> set[int]:
        return set(self.row.tokens(0, self.position + 1))


@dataclass
class Table:
    """`rows` by place in the batch. `members`: name → number of the distinct checkpoint that holds it."""

    members: dict[str, int] = field(default_factory=dict[str, int])
    ends: tuple[int, ...] = ()
    rows: dict[int, Row] = field(default_factory=dict[int, Row])
    default: Plan = field(default_factory=lambda: single(""))

    def configure(self, members: Mapping[str, int], ends: Sequence[int]) -> None:
        self.members, self.ends = dict(members), tuple(ends)
        self.default = single(next(iter(members)))


_tables: dict[int, Table] = {}


def table_of(static_forward_context: object) -> Table:
    """The table of one engine: its runner and its model find it by an object that both hold."""
    return _tables.setdefault(id(static_forward_context), Table())
