"""A recipe as the user names it: a file or a packaged recipe's name, with overrides on top.

recipe, folder = read_recipe("small-chat", ["optimizer.lr=1e-3", "data.train.files=[mine.jsonl]"])
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from motet.composers.errors import explain
from motet.settings import SettingsError, Tree, name_of, offer, override, read_mapping, sentences
from motet.training.recipe import Recipe
from motet.training.run.errors import RunError

PACKAGED = Path(__file__).parent.parent / "recipes"

WANTED = "of a recipe's fields"


class RecipeError(RunError):
    """A recipe that is not valid. `rest`: what it is without its faulty fields, where that is a recipe still (and the
    folder of its paths), so that whoever reports the faults can look for others there."""

    def __init__(self, problems: Sequence[str], rest: tuple[Recipe, Path] | None) -> None:
        super().__init__(problems)
        self.rest = rest


def read_recipe(name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Path]:
    """The recipe of a file or of a packaged name, and the folder that its relative paths start from.

    That is the file's own folder; a packaged recipe's paths start from the working directory.

    Args:
        name: a YAML file, or a packaged recipe's name.
        overrides: `dotted.name=value`, values as in YAML; later ones win, a mapping replaces a whole section.

    Raises:
        RecipeError: everything that is wrong with file and overrides.
    """
    tree, unread = _read(name)
    problems = unread + override(tree, overrides)
    file = Path(name)
    folder = file.resolve().parent if file.is_file() else Path.cwd()
    recipe, invalid = (None, []) if unread else _validated(tree)
    if recipe is None or problems:
        sound = None if unread else recipe or _without_faults(tree)
        raise RecipeError(problems + invalid, None if sound is None else (sound, folder))
    return recipe, folder


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(PACKAGED.glob("*.yaml"))}


def _read(name: str) -> tuple[Tree, list[str]]:
    file = Path(name)
    known = packaged_recipes()
    if not file.is_file():
        if name not in known:
            return {}, [f"recipe {name!r}: neither a file nor a packaged recipe.{offer(name, known)}"]
        file = known[name]
    try:
        tree = read_mapping(file, WANTED)
    except SettingsError as error:
        return {}, error.problems
    return tree, [] if tree else [f"{file}: a mapping {WANTED} is expected"]


def _validated(tree: Tree) -> tuple[Recipe | None, list[str]]:
    for section in ("tuning", "optimizer"):  # whose `type` has a default
        if isinstance(tree.get(section), dict):
            tree[section] = {"type": Recipe.model_fields[section].default.type, **tree[section]}
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        problems = [problem for problem in error.errors(include_url=False) if _meant(problem, tree)]
        return None, sentences(problems, Recipe, tree, lambda problem: explain(problem, (), ()))


def _without_faults(tree: Tree) -> Recipe | None:
    """The recipe with defaults in the place of what is faulty, None where something faulty has no default."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        faults = [name_of(problem, tree).split(".") for problem in error.errors(include_url=False)]
    sound = copy.deepcopy(tree)
    for *outer, last in faults:
        at: Any = sound
        for part in outer:
            at = cast(Tree, at).get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            cast(Tree, at).pop(last, None)
    try:
        return Recipe.model_validate(sound)
    except ValidationError:
        return None


def _meant(problem: ErrorDetails, tree: Tree) -> bool:
    """Of a model source, only the form that was meant is explained."""
    if len(problem["loc"]) < 2 or problem["loc"][0] != "model":
        return True
    fresh = isinstance(tree["model"], dict) and "fresh" in tree["model"]
    return problem["loc"][1] == ("Fresh" if fresh else "Checkpoint")
