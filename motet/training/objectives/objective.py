"""What every objective is: a frozen setting of a recipe that turns batches and policies into a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor, nn

from motet.experts.schema import HeadSpec
from motet.training.batch import Batch, StepData
from motet.training.policy import Policies

# What a dataset's records must be: documents; prompts with a chosen and a rejected answer (the step gets two
# batches, NAME.chosen and NAME.rejected, document i of one belonging to document i of the other); documents with a
# boolean or class label (`Batch.labels`); completions after a prompt and after another one (NAME and
# NAME.counterfactual, with the same targets in the same order); prompts with answers, labelled by their file's name.
RecordKind = Literal["documents", "pairs", "labelled", "classes", "counterfactuals", "clusters"]


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


@dataclass(frozen=True, slots=True)
class Paths:
    """When another token leads elsewhere: the teacher writes on, up to `horizon` tokens behind either, and the longest
    common subsequence of what it wrote is shorter than `agreement` times the longer text."""

    horizon: int
    agreement: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the bundle says of a trained head, and what was measured with it."""

    head: HeadSpec | None
    measures: Mapping[str, float] = field(default_factory=dict[str, float])


@runtime_checkable
class Objective(Protocol):
    """A loss, and what it asks of the run: the trainer looks here, never at which objective it is.

    Attributes:
        datasets: the recipe's `data` entries that it reads.
        optional: those of them that a recipe may leave out.
        needs_reference: whether `Policies.reference` is read.
        least_documents: of its first dataset, that a loss can be computed from.
        member_fields: its fields that hold a member's name; what is no text there may be a composition of members.
        one_model: whether it reads one model's hidden states or class prompts, so that nothing is trained `through` a
            composition by it.
        rounds_begin_as: the objective that documents are read for, where it plays rounds on them against the model's
            own answers; None: it plays none.
        type: its name in recipes.
        teacher_tokens: how many of a teacher's most likely tokens are stored for each target, before training; its
            field `teacher` then says which member or composition teaches. None: it has no teacher.
        paths: where the teacher's most likely token replaces the trained model's only if it leads elsewhere.
        class_prompts: the text of each class, in the order of the sorted labels; empty: there are no classes.
        classes: the labels that the data must have; empty: any.
        learns_at_end: whether the head is made by `calibrated`, of the training data therefore.
    """

    datasets: ClassVar[Mapping[str, RecordKind]]
    optional: ClassVar[frozenset[str]]
    needs_reference: ClassVar[bool]
    least_documents: ClassVar[int]
    member_fields: ClassVar[tuple[str, ...]]
    one_model: ClassVar[bool]
    rounds_begin_as: ClassVar[Objective | None]
    learns_at_end: ClassVar[bool]

    @property
    def type(self) -> str: ...

    @property
    def teacher_tokens(self) -> int | None: ...

    @property
    def paths(self) -> Paths | None: ...

    @property
    def class_prompts(self) -> tuple[str, ...]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def head(self, hidden_size: int) -> nn.Module | None:
        """What is trained beside the model, and saved as `head.safetensors`. It begins alike whatever the seed.

        Args:
            hidden_size: the width H of the model's last hidden state.
        """
        ...

    @property
    def head_spec(self) -> HeadSpec | None:
        """What the expert's bundle says of that head, where a composition can be served with it."""
        ...

    def calibrated(self, policies: Policies, batches: Iterable[Batch]) -> Calibration:
        """What the bundle says of it after training.

        Args:
            batches: of the validation data, or the training data where there are none or it learns at the end; whole
                documents.
        """
        ...

    def initialise(self, policies: Policies, at: Callable[[int], StepData]) -> None:
        """What happens once, before the first step of a fresh run.

        Args:
            at: the data of a step.
        """
        ...

    def loss(self, policies: Policies, data: StepData) -> Loss:
        """The loss of one step's batches."""
        ...


class ObjectiveSetting(BaseModel):
    """What objectives have in common: frozen, strict about unknown names, every dataset required, one document enough,
    and nothing asked for that `Objective` has besides."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    datasets: ClassVar[Mapping[str, RecordKind]]
    optional: ClassVar[frozenset[str]] = frozenset()
    needs_reference: ClassVar[bool] = False
    least_documents: ClassVar[int] = 1
    member_fields: ClassVar[tuple[str, ...]] = ()
    one_model: ClassVar[bool] = False
    rounds_begin_as: ClassVar[Objective | None] = None
    learns_at_end: ClassVar[bool] = False

    @property
    def teacher_tokens(self) -> int | None:
        return None

    @property
    def paths(self) -> Paths | None:
        return None

    @property
    def class_prompts(self) -> tuple[str, ...]:
        return ()

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    def head(self, hidden_size: int) -> nn.Module | None:
        return None

    @property
    def head_spec(self) -> HeadSpec | None:
        return None

    def calibrated(self, policies: Policies, batches: Iterable[Batch]) -> Calibration:
        """Nothing is measured."""
        return Calibration(self.head_spec)

    def initialise(self, policies: Policies, at: Callable[[int], StepData]) -> None:
        """Nothing."""
