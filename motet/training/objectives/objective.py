"""What every objective is: a frozen setting of a recipe that turns batches and policies into a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from motet.training.batch import StepData
from motet.training.policy import Policies

# What a dataset's records must be: documents; prompts with a chosen and a rejected answer (the step gets two
# batches, NAME.chosen and NAME.rejected, document i of one belonging to document i of the other); documents with a
# boolean or class label (`Batch.labels`).
RecordKind = Literal["documents", "pairs", "labelled", "classes"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A scalar to be minimised, and named parts for the metrics (detached scalars)."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@runtime_checkable
class Objective(Protocol):
    """One method. `datasets` names the recipe's `data` entries that it reads."""

    datasets: ClassVar[Mapping[str, RecordKind]]
    needs_reference: ClassVar[bool]

    def loss(self, policies: Policies, data: StepData) -> Loss:
        """The loss of one step's batches."""
        ...
