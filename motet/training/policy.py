"""What an objective sees of the models: functions from a batch to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from motet.models.heads import Seen
from motet.training.batch import Batch


@dataclass(frozen=True, slots=True)
class Scores:
    """The logits of a batch's N targets before they are computed: any rows of them, at any time.

    Attributes:
        inputs: (N, …) each; row i of them, and nothing else, decides row i of the logits.
        logits: rows start ≤ i < stop of the logits (n, V), at least float32 and defined up to a constant per row, from
            those rows of every input.
        width: V.
        trains: whether parameters inside `logits` are trained.
    """

    inputs: tuple[Tensor, ...]
    logits: Callable[..., Tensor]
    width: int
    trains: bool = False

    def whole(self) -> Tensor:
        """All rows at once, (N, V)."""
        return self.logits(slice(0, len(self.inputs[0])), *self.inputs)


class Policy(Protocol):
    """A distribution over next tokens: one model, or a composition of several."""

    def __call__(self, batch: Batch, /) -> Tensor:
        """Logits (N, V), at least float32, of the batch's targets; defined up to a constant per row."""
        ...

    def scores(self, batch: Batch, /) -> Scores:
        """The same logits, to be computed in blocks of rows."""
        ...


class HiddenPolicy(Policy, Protocol):
    """A model whose last hidden states can be read too: what heads are trained on."""

    def hidden(self, batch: Batch, /) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, H) after the final norm, and logits (N, V)."""
        ...

    def seen(self, batch: Batch, /) -> Seen:
        """The same without gradients and dropout, as the model is served, with its input embeddings."""
        ...


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The most likely tokens of N distributions, and the mass of all others."""

    ids: Tensor  # (N, k) int64
    logprobs: Tensor  # (N, k)
    rest: Tensor  # (N,) log of the other tokens' mass, −inf where k is the vocabulary

    def rows(self, rows: slice) -> TopTokens:
        """Those of some of the distributions."""
        return TopTokens(self.ids[rows], self.logprobs[rows], self.rest[rows])


class Teacher(Protocol):
    """A distribution that is imitated, computed or stored."""

    def __call__(self, batch: Batch, /) -> TopTokens: ...


@dataclass(frozen=True, slots=True)
class ClassPrompts:
    """Token ids that stand for each class, set behind the first `at` tokens of a document (its BOS)."""

    ids: tuple[tuple[int, ...], ...]
    at: int = 0


@dataclass(frozen=True, slots=True)
class Policies:
    """What a loss is made of.

    Attributes:
        trained: with gradients.
        reference: the same policy before training, without (objectives that need it).
        members: frozen members by name (the assistant of a gate).
        teacher: of a distillation; of a router, which token it should be.
        head: trained beside the model (gate, router, temperature_head, similarity_head, gedi).
        classes: the prompts of the classes (gedi).
    """

    trained: Policy
    reference: Policy | None = None
    members: Mapping[str, Policy] = field(default_factory=dict[str, Policy])
    teacher: Teacher | None = None
    head: nn.Module | None = None
    classes: ClassPrompts | None = None
