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
    """A measure of the Pareto front."""

    measure: str
    """A column of the report."""
    better: Direction = "max"
    """Whether more or less of it is better."""
    log: bool = False
    """Draw it on a logarithmic axis."""


class Select(Setting, frozen=True):
    """Which point is chosen. No measure against a reference model is needed unless it is named here."""

    rule: Literal["best", "first"] = "best"
    """`best`: the point with the best `measure`. `first`: the first point of the grid whose `measure` reaches
    `at_least`."""
    measure: str
    """A column of the report."""
    better: Direction = "max"
    """Whether more or less of it is better."""
    at_least: float = 0.05
    """For `first`."""


class Sweep(Setting, frozen=True):
    """A grid over fields of a subject's own composition."""

    subject: str
    """The subject that is varied."""
    over: Annotated[dict[str, Values], Field(min_length=1)]
    """Dotted field names with their values; the last one varies fastest."""
    front: Annotated[tuple[Axis, ...], Field(min_length=2)]
    """Measures of the Pareto front; the first two are the figure's axes."""
    select: Select | None = None
    """How a point is chosen; by default none is."""

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
