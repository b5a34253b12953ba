"""What a step composes, as data: which rows of the members' logits enter which output row, and how.

Shapes: V is the shared vocabulary, N the stream rows of a step (all streams of all requests), R the output rows
(one per token position of one choice).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

SetKind = Literal["ratio", "rank_or_ratio", "nucleus"]
TIE = 1e-4  # nats by which differences of log-probs must differ to be told apart, see `cores.divergence`
BLOCK = 1 << 18  # elements handled at once: a megabyte of float32 stays in a core's cache
Index = slice | Tensor  # rows of a matrix: a slice (no copy) where they are consecutive, else (n,) int64


class Kind(IntEnum):
    """The rules that are no plain weighted sum; the numbers are those that kernels read."""

    LINEAR = 0
    RELU = 1
    MIXTURE = 2
    DISCRIMINATOR = 3
    DYNAMIC = 4
    BUDGET = 5
    ROUTED = 6
    DIVERGENCE = 7
    CASCADE = 8
    SPARSE = 9


class Measure(IntEnum):
    """How sure a distribution is: its largest probability, the lead of that over the second, its entropy in nats."""

    MAX_PROB = 0
    MARGIN = 1
    ENTROPY = 2


@dataclass(frozen=True, slots=True)
class SetRows:
    """A plausible set of tokens for some rows: `source` are the rows of the log-probs that define it."""

    kind: SetKind
    value: float
    source: Index


@dataclass(frozen=True, slots=True)
class TermRows:
    """One stream's contribution to `rows`: weight (n,) times the log-probs at `source`.

    `temperature` (n,) divides the log-probs before they are normalised again; None means 1 everywhere.
    """

    rows: Index
    source: Index
    weight: Tensor
    temperature: Tensor | None = None
    inside: SetRows | None = None


@dataclass(frozen=True, slots=True)
class RuleRows:
    """Rows whose score is no weighted sum: `sources[k]` are the rows of stream k, all (n,), for K streams.

    `weight` (n, K). `temperature` (n, K) divides the logits; None means 1 everywhere. `param` (n, 3), by kind (unused
    places are 0):

    - RELU: α.
    - DISCRIMINATOR: ω, kept mass, kept posterior.
    - DYNAMIC: largest α, 1 for the symmetric form. Streams 1 and 2, 3 and 4, … are pairs of expert and anti-expert,
      whose weights are the pair's and its negative.
    - BUDGET: largest α, ε in nats.
    - ROUTED: threshold, negative to mix.
    - DIVERGENCE: how many tokens are impossible.
    - CASCADE: a `Measure`, its threshold, stream 1's share where it is met.
    - SPARSE: the mean probability above which streams agree.
    """

    kind: Kind
    rows: Index
    sources: tuple[Index, ...]
    weight: Tensor
    param: Tensor
    temperature: Tensor | None = None

    def tempered(self, k: int, scores: Tensor) -> Tensor:
        """Scores (n, V) of stream k, raw logits or log-probs, at its temperature; not normalised."""
        return scores if self.temperature is None else scores / self.temperature[:, k, None]


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Tokens outside of `keep` are impossible in `rows`."""

    rows: Index
    keep: SetRows


@dataclass(frozen=True, slots=True)
class ComposeRows:
    """The composition of a step over R rows. `base` are the rows of the log-probs that hold each row's base stream;
    terms stand in stream order, so that a row's sum does not depend on what else is in the batch. A row is either
    among the rows of `terms` or of `rules`."""

    num_rows: int
    base: Index
    terms: tuple[TermRows, ...]
    masks: tuple[MaskRows, ...] = ()
    rules: tuple[RuleRows, ...] = ()

    @property
    def pairs(self) -> int:
        """Strengths that a row may solve for: the most pairs of experts in any row, at least 1."""
        counts = ((len(rule.sources) - 1) // 2 for rule in self.rules if rule.kind is Kind.DYNAMIC)
        return max(counts, default=1)


@dataclass(frozen=True, slots=True)
class SparseEdits:
    """Values at single (row, token) places: three tensors of the same length."""

    rows: Tensor  # (n,) int64
    tokens: Tensor  # (n,) int64
    values: Tensor  # (n,)


@dataclass(frozen=True, slots=True)
class BitMask:
    """Tokens that single rows may take, packed as grammar engines pack them (llguidance, xgrammar): row `rows[i]` may
    take token v if bit v mod 32 of `words[i, ⌊v/32⌋]` is set. Rows that are not named may take any."""

    rows: Sequence[int]
    words: Tensor  # (n, ⌈V/32⌉) int32

    def check(self, vocab: int) -> None:
        """Raises ValueError unless the words are those of `vocab` tokens, one row of them per row."""
        wanted = (len(self.rows), (vocab + 31) // 32)
        if self.words.dtype != torch.int32 or tuple(self.words.shape) != wanted:
            found = f"{self.words.dtype} {tuple(self.words.shape)}"
            raise ValueError(f"a mask of {vocab} tokens for {len(self.rows)} rows is int32 {wanted}, got {found}")


def blocks(rows: int, vocab: int) -> Iterator[slice]:
    """Row by row where one fills the cache, else several at once: a call costs as much as a few thousand elements."""
    step = max(1, BLOCK // vocab)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def rows_index(rows: Sequence[int], device: torch.device | None = None) -> Index:
    """A slice where `rows` are consecutive and ascending (no copy when used), else an index tensor."""
    start = rows[0]
    if all(row == start + i for i, row in enumerate(rows)):
        return slice(start, start + len(rows))
    return torch.tensor(rows, dtype=torch.int64, device=device)


def edits_or_none(places: Sequence[tuple[int, int, float]], like: Tensor) -> SparseEdits | None:
    """`edits`, or None where there is nothing to edit."""
    return edits(places, like) if places else None


def edits(places: Sequence[tuple[int, int, float]], like: Tensor) -> SparseEdits:
    """Sparse edits from (row, token, value) triples on the device and in the dtype of `like`."""
    rows, tokens, values = zip(*places, strict=True)
    return SparseEdits(
        torch.tensor(rows, dtype=torch.int64, device=like.device),
        torch.tensor(tokens, dtype=torch.int64, device=like.device),
        torch.tensor(values, dtype=like.dtype, device=like.device),
    )
