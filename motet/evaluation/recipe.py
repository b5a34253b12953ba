"""An evaluation recipe: one YAML file, validated as a whole, frozen.

    root: demo
    output: out/eval/gap-closed
    api: {models: models.yaml}
    subjects: {base: large, composed: large-proxy, tuned: large-chat}
    tasks:
      - {type: gap_closed, data: held_out.jsonl, base: base, tuned: tuned}

`root` is the folder of data and of the operator's file, by default the recipe's own; `demo` is the cached demo family
of seed 0, whose data files lie in its folder `evaluation`. `output` is relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from motet.evaluation.merge import Merge
from motet.evaluation.settings import RecipeError, validated
from motet.evaluation.subject import AnySubject, Subject
from motet.evaluation.tasks import AnyTask
from motet.settings import Setting, SettingsError, nearest, override, read_mapping, set_value

PACKAGED = Path(__file__).parent / "recipes"
Direction = Literal["max", "min"]
Values = Annotated[list[Any], Field(min_length=1)]


class ApiSource(Setting, frozen=True):
    """What is asked: a running server, else the application in this process over an operator's file."""

    server: str | None = None
    """The address of a running server, with or without /v1."""
    models: str = "models.yaml"
    """The operator's file, in the root."""
    merges: dict[str, Merge] = Field(default_factory=dict[str, Merge])
    """Further models, whose weights are merged from the file's."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ApiSource:
        given = sorted(self.model_fields_set & {"models", "merges"})
        if self.server is not None and given:
            raise ValueError(f"a running server has its own models: {' and '.join(given)} cannot be given beside it")
        return self


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


class Recipe(Setting, frozen=True):
    """One evaluation."""

    name: str | None = None
    """By default the output folder's name."""
    root: str | None = None
    """The folder of data and of the operator's file, by default the recipe's own. `demo` is the cached demo family of
    seed 0, `demo:3` that of seed 3, built where it is missing; its data files lie in its folder `evaluation`."""
    output: Path
    """The folder to write, relative to the working directory."""
    api: ApiSource = ApiSource()
    """What is asked."""
    subjects: Annotated[dict[str, AnySubject], Field(min_length=1)]
    """What is evaluated, by name."""
    tasks: Annotated[tuple[AnyTask, ...], Field(min_length=1)]
    """What is measured."""
    examples: str | None = None
    """The file that prompt-only subjects take their answered questions from."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Rows that are read of each data file, at most."""
    concurrency: Annotated[int, Field(ge=1)] = 32
    """Requests that are asked at once."""
    sweep: Sweep | None = None
    """What `motet eval sweep` varies."""

    @property
    def title(self) -> str:
        return self.name or self.output.name


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


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(PACKAGED.glob("*.yaml"))}


def find_recipe(name: Path) -> Path:
    """The file, else the packaged recipe of that name.

    Raises:
        RecipeError: neither exists.
    """
    packaged = packaged_recipes()
    if not name.is_file() and str(name) not in packaged:
        near = nearest(name.stem, list(packaged))
        raise RecipeError([f"{name}: neither a file nor a packaged recipe.{near} Packaged: {', '.join(packaged)}."])
    return name if name.is_file() else packaged[str(name)]


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, changed by `overrides` such as `limit=20` or `subjects.composed.composition.alpha=0.5`.

    Raises:
        RecipeError: all problems together.
    """
    try:
        tree = read_mapping(path, "with 'subjects' and 'tasks'")
    except SettingsError as error:
        raise RecipeError(error.problems) from error
    problems = override(tree, overrides)
    if problems:
        raise RecipeError([f"{problem}." for problem in problems])
    recipe = validated(Recipe, tree)
    problems = list(_unknown_names(recipe))
    if problems:
        raise RecipeError(problems)
    return recipe


def _unknown_names(recipe: Recipe) -> Iterator[str]:
    """Sentences about subjects that are named but not there, and examples without a file."""
    for i, task in enumerate(recipe.tasks):
        yield from _unknown(f"tasks.{i}", task.named, recipe.subjects)
    if recipe.sweep is not None:
        yield from _unknown("sweep", {"subject": recipe.sweep.subject}, recipe.subjects)
        yield from recipe.sweep.problems(recipe.subjects.get(recipe.sweep.subject))
    for name, subject in recipe.subjects.items():
        if subject.examples and recipe.examples is None:
            yield f"subjects.{name}.examples: the recipe names no file of 'examples'."


def _unknown(path: str, named: Mapping[str, str], subjects: Mapping[str, Any]) -> Iterator[str]:
    for field, name in named.items():
        if name not in subjects:
            near = nearest(name, list(subjects))
            yield f"{path}.{field}: unknown subject {name!r}.{near} Subjects: {', '.join(subjects)}."
