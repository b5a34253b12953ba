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
    """A scalar to be minimised, and named parts for the metrics (detached scalars).

    A step's loss is the mean of its micro-batches' totals, weighted by `weight`: a mean over tokens names their
    number (or summed weight) here, so that accumulation gives what one large batch gives.
    """

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    weight: Tensor | float = 1.0


@runtime_checkable
class Objective(Protocol):
    """One method. `datasets` names the recipe's `data` entries that it reads."""

    datasets: ClassVar[Mapping[str, RecordKind]]
    needs_reference: ClassVar[bool]

    def loss(self, policies: Policies, data: StepData) -> Loss:
        """The loss of one step's batches."""
        ...
