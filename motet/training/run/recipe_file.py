"""A recipe as the user names it: a file or a packaged recipe's name, with overrides on top.

recipe, folder = read_recipe("small-chat", ["optimizer.lr=1e-3", "data.train.files=[mine.jsonl]"])
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from motet.composers.errors import explain, show
from motet.settings import read_yaml
from motet.training.recipe import Recipe
from motet.training.run.errors import RunError, nearest

PACKAGED = Path(__file__).parent.parent / "recipes"

Tree = dict[str, Any]


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
    problems = unread + _apply(tree, overrides)
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
            return {}, [f"recipe {name!r}: neither a file nor a packaged recipe{nearest(name, known)}"]
        file = known[name]
    try:
        tree: Any = read_yaml(file.read_text("utf-8"))
    except OSError as error:
        return {}, [f"{file}: {error.strerror}"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return {}, [f"{file}: not readable as YAML: {error}"]
    if not isinstance(tree, dict) or not tree:
        return {}, [f"{file}: a mapping of a recipe's fields is expected"]
    return {str(key): value for key, value in cast(Tree, tree).items()}, []


def _apply(tree: Tree, overrides: Sequence[str]) -> list[str]:
    """Sets every override in `tree`, in place; what cannot be set."""
    problems: list[str] = []
    for override in overrides:
        name, sign, text = override.partition("=")
        if not sign or not all(name.split(".")):
            problems.append(f"{override!r}: an override has the form dotted.name=value")
            continue
        try:
            _set(tree, name.split("."), read_yaml(text))
        except yaml.YAMLError as error:
            problems.append(f"{name}: {text!r} is not readable as YAML: {error}")
        except TypeError:
            problems.append(f"{name}: leads through a value that is no mapping")
    return problems


def _set(tree: Tree, path: Sequence[str], value: object) -> None:
    for part in path[:-1]:
        inner = tree.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise TypeError(part)
        tree[part] = tree = dict(cast(Tree, inner or {}))
    tree[path[-1]] = value


def _validated(tree: Tree) -> tuple[Recipe | None, list[str]]:
    for section in ("tuning", "optimizer"):  # whose `type` has a default
        if isinstance(tree.get(section), dict):
            tree[section] = {"type": Recipe.model_fields[section].default.type, **tree[section]}
    try:
        return Recipe.model_validate(tree), []
    except ValidationError as error:
        problems = error.errors(include_url=False)
        return None, [_sentence(problem, tree) for problem in problems if _meant(problem, tree)]


def _without_faults(tree: Tree) -> Recipe | None:
    """The recipe with defaults in the place of what is faulty, None where something faulty has no default."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        faults = [_name(problem, tree).split(".") for problem in error.errors(include_url=False)]
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


def _sentence(problem: ErrorDetails, tree: Tree) -> str:
    owners = list(_owners(problem["loc"]))
    name = _name(problem, tree)
    match problem["type"]:
        case "extra_forbidden":
            fields = {field for owner in owners for field in owner.model_fields}
            return f"{name}: unknown field{nearest(str(problem['loc'][-1]), fields)}"
        case "union_tag_invalid":
            context = problem.get("ctx", {})
            tag, tags = str(context.get("tag")), re.findall(r"'([^']*)'", str(context.get("expected_tags")))
            return f"{name}.type: {show(tag)} is unknown{nearest(tag, tags)}"
        case "union_tag_not_found":
            return f"{name}.type: required"
        case _:
            return f"{name}: {explain(problem, (), ())}"


def _name(problem: ErrorDetails, tree: Tree) -> str:
    """The dotted name as the user wrote it, without the tags that unions put into pydantic's."""
    *outer, last = problem["loc"] or ("recipe",)
    names: list[str] = []
    at: object = tree
    for part in outer:
        if isinstance(at, Mapping) and part in at:
            at = cast("Mapping[object, object]", at)[part]
        elif isinstance(at, list) and isinstance(part, int):
            at = cast("list[object]", at)[part]
        else:
            continue
        names.append(str(part))
    named = isinstance(last, int) or (isinstance(at, Mapping) and last in at)
    tag = problem["type"] not in ("missing", "extra_forbidden") and not named
    return ".".join(names if tag and names else [*names, str(last)])


def _owners(loc: tuple[int | str, ...]) -> Iterator[type[BaseModel]]:
    """The classes that the object of the last part of `loc` may have."""
    candidates: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        tagged = [owner for owner in candidates if part in (owner.__name__, _tag(owner))]
        fields = [owner.model_fields[str(part)] for owner in candidates if str(part) in owner.model_fields]
        inner = [model for field in fields for model in _models(field.annotation)]
        candidates = tagged or inner or candidates
    yield from candidates


def _tag(model: type[BaseModel]) -> object:
    field = model.model_fields.get("type")
    return None if field is None else field.default


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
