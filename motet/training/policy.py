"""What an objective sees of the models: functions from a batch to logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from motet.training.batch import Batch


class Policy(Protocol):
    """A distribution over next tokens: one model, or a composition of several."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits (N, V), at least float32, of the batch's targets; defined up to a constant per row."""
        ...


class HiddenPolicy(Policy, Protocol):
    """A model whose last hidden states can be read too: what heads are trained on."""

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden states (N, H) after the final norm, and logits (N, V)."""
        ...


@dataclass(frozen=True, slots=True)
class Policies:
    """The trained policy with gradients; the same policy before training, without (objectives that ask for it)."""

    trained: Policy
    reference: Policy | None = None
    members: dict[str, Policy] | None = None  # frozen members by name: teachers, the base of a gate


Reporter = Callable[[int, float], None]  # steps done, loss
