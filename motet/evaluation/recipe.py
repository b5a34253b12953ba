"""An evaluation recipe: one YAML file, validated as a whole, frozen.

    root: demo
    output: out/eval/gap-closed
    api: {models: models.yaml}
    subjects: {base: large, composed: large-proxy, tuned: large-chat}
    tasks:
      - {type: gap_closed, data: held_out.jsonl, base: base, tuned: tuned}

`root` is the folder of data and of the operator's file, by default the recipe's own; `demo` is the cached demo family
of seed 0, `demo:3` of seed 3. `output` is relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from pydantic import Field, model_validator

from motet.evaluation.dotted import Tree, set_value
from motet.evaluation.merge import Merge
from motet.evaluation.settings import RecipeError, Setting, nearest, validated
from motet.evaluation.subject import AnySubject
from motet.evaluation.sweep_settings import Sweep
from motet.evaluation.tasks import AnyTask
from motet.settings import read_yaml

PACKAGED = Path(__file__).parent / "recipes"


class Source(Setting, frozen=True):
    """What is asked: a running server, else the application in this process over an operator's file."""

    server: str | None = None
    """The address of a running server, without /v1."""
    models: str = "models.yaml"
    """The operator's file, in the root."""
    merges: dict[str, Merge] = Field(default_factory=dict[str, Merge])
    """Further models, whose weights are merged from the file's."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Source:
        given = sorted(self.model_fields_set & {"models", "merges"})
        if self.server is not None and given:
            raise ValueError(f"a running server has its own models: {' and '.join(given)} cannot be given beside it")
        return self


class Recipe(Setting, frozen=True):
    """One evaluation."""

    name: str | None = None
    """By default the output folder's name."""
    root: str | None = None
    """The folder of data and of the operator's file, by default the recipe's own; `demo` is the cached demo family of
    seed 0, `demo:3` that of seed 3."""
    output: Path
    """The folder to write, relative to the working directory."""
    api: Source = Source()
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
    tree = _read(path)
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    if problems:
        raise RecipeError(problems)
    recipe = validated(Recipe, tree)
    problems = list(_unknown_names(recipe))
    if problems:
        raise RecipeError(problems)
    return recipe


def _read(path: Path) -> Tree:
    try:
        tree: Any = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError([f"{path}: {error.strerror}."]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: not readable as YAML: {error}"]) from error
    if not isinstance(tree, dict):
        raise RecipeError([f"{path}: a mapping with 'subjects' and 'tasks' is expected."])
    return cast(Tree, tree)


def _override(tree: Tree, text: str) -> str | None:
    """Sets a dotted name in place; what is wrong with it, if anything."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        return f"{text!r}: overrides are written name=value."
    try:
        set_value(tree, name, read_yaml(value))
    except ValueError as error:
        return f"{name}: {error}."
    except yaml.YAMLError as error:
        return f"{name}: {value!r} is not readable as YAML: {error}"
    return None


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
