"""What a sweep varies, what it draws, and how it chooses."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import Field

from motet.evaluation.dotted import set_value
from motet.evaluation.settings import Setting
from motet.evaluation.subject import Subject

Direction = Literal["max", "min"]
Values = Annotated[list[Any], Field(min_length=1)]


class Axis(Setting, frozen=True):
    """A measure, and whether more of it is better. `log`: drawn on a logarithmic axis."""

    measure: str
    better: Direction = "max"
    log: bool = False


class Select(Setting, frozen=True):
    """`best`: the point with the best `measure`. `first`: the first point of the grid whose `measure` reaches
    `at_least`. Either way no measure against a reference model is needed unless it is named here."""

    rule: Literal["best", "first"] = "best"
    measure: str
    better: Direction = "max"
    at_least: float = 0.05


class Sweep(Setting, frozen=True):
    """A grid over fields of the subject's own composition; `over` maps dotted field names to values, the last one
    varies fastest. `front` are the measures of the Pareto front, the first two of them the figure's axes."""

    subject: str
    over: Annotated[dict[str, Values], Field(min_length=1)]
    front: Annotated[tuple[Axis, ...], Field(min_length=2)]
    select: Select | None = None

    def points(self) -> list[dict[str, Any]]:
        """Every combination of values."""
        return [dict(zip(self.over, values, strict=True)) for values in product(*self.over.values())]

    def problems(self, subject: Subject | None) -> Iterator[str]:
        """What is wrong with sweeping this subject."""
        if subject is not None and subject.composition is None:
            yield f"sweep.subject: {self.subject!r} has no composition of its own to vary: write it in the recipe."


def varied(subject: Subject, point: dict[str, Any]) -> Subject:
    """The subject with the point's values in its composition; dotted names go into nested objects.

    Raises:
        ValueError: a name leads through a value that holds no names.
    """
    composition = deepcopy(subject.composition or {})
    for name, value in point.items():
        set_value(composition, name, value)
    return subject.model_copy(update={"composition": composition})


def label(subject: str, point: dict[str, Any]) -> str:
    """`unlearned weight=0.8 filter=0.01`"""
    return " ".join([subject, *(f"{name}={value}" for name, value in point.items())])
