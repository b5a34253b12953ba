"""What every objective is: a frozen setting of a recipe that turns batches and policies into a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from motet.training.batch import StepData
from motet.training.policy import Policies

# What a dataset's records must be: documents; prompts with a chosen and a rejected answer (the step gets two
# batches, NAME.chosen and NAME.rejected, document i of one belonging to document i of the other); documents with a
# boolean or class label (`Batch.labels`); completions after a prompt and after another one (NAME and
# NAME.counterfactual, with the same targets in the same order).
RecordKind = Literal["documents", "pairs", "labelled", "classes", "counterfactuals"]


Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]


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
    """One method.

    Attributes:
        datasets: the recipe's `data` entries that it reads.
        optional: those of them that a recipe may leave out.
        needs_reference: whether `Policies.reference` is read.
        least_documents: of its first dataset, that a loss can be computed from.
        type: its name in recipes.
    """

    datasets: ClassVar[Mapping[str, RecordKind]]
    optional: ClassVar[frozenset[str]]
    needs_reference: ClassVar[bool]
    least_documents: ClassVar[int]

    @property
    def type(self) -> str: ...

    def loss(self, policies: Policies, data: StepData) -> Loss:
        """The loss of one step's batches."""
        ...


class Setting(BaseModel):
    """What objectives have in common: frozen, strict about unknown names, no reference, every dataset required, one
    document enough."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    optional: ClassVar[frozenset[str]] = frozenset()
    needs_reference: ClassVar[bool] = False
    least_documents: ClassVar[int] = 1
