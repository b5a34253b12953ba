"""What an objective asks of its recipe, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.composers.plan import Plan
from motet.settings import nearest
from motet.training.data.reading import guess_kind
from motet.training.policies.through import TokenId, member_plan
from motet.training.policy import ClassPrompts
from motet.training.recipe import VALIDATION, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from motet.training.data.dataset import TokenDataset


def objective_problems(recipe: Recipe) -> Iterator[str]:
    """What the objective needs of other fields and does not get, one line each."""
    objective = recipe.objective
    if recipe.through is not None and objective.one_model:
        yield (
            f"through: the objective {objective.type!r} reads one model's hidden states or class prompts, "
            "not a composition; leave through out"
        )
    for field in objective.member_fields:
        yield from _member_problems(f"objective.{field}", getattr(objective, field), recipe)
    if objective.teacher_tokens is not None and recipe.batch.packing == "wrap":
        yield "batch.packing: wrap cuts documents, and a teacher's distributions are stored whole; allowed: none, fit"
    yield from _row_problems(recipe)
    yield from _unread_settings(recipe)


def _member_problems(path: str, value: object, recipe: Recipe) -> Iterator[str]:
    """A name that no member has; a composition is checked as its plan is built."""
    if isinstance(value, str) and value not in recipe.members:
        members = ", ".join(sorted(recipe.members)) or "none"
        yield f"{path}: no member {value!r}.{nearest(value, recipe.members)} Members: {members}"


def _row_problems(recipe: Recipe) -> Iterator[str]:
    """Micro-batches too small for a loss."""
    objective = recipe.objective
    leading = recipe.data.get(next(iter(objective.datasets)))
    rows = (leading.rows if leading else None) or recipe.batch.rows
    if objective.least_documents > 1 and rows // recipe.batch.accumulate < objective.least_documents:
        yield (
            f"batch.rows: {objective.type} needs {objective.least_documents} documents in a micro-batch, got {rows} "
            f"rows in {recipe.batch.accumulate} micro-batches"
        )


def record_problems(recipe: Recipe, datasets: Mapping[str, TokenDataset]) -> Iterator[str]:
    """Data too small for a loss: the objective's first dataset, and the validation in its place."""
    objective = recipe.objective
    for name in (next(iter(objective.datasets)), VALIDATION):
        if name in datasets and len(datasets[name]) < objective.least_documents:
            yield (
                f"data.{name}: {objective.type} compares records with each other and needs "
                f"{objective.least_documents} at least, got {len(datasets[name])}"
            )


def _unread_settings(recipe: Recipe) -> Iterator[str]:
    """Settings of a dataset that the recipe leaves out."""
    given: set[str] = getattr(recipe.objective, "model_fields_set", set[str]())
    for dataset in recipe.objective.optional - recipe.data.keys():
        for name in sorted(given & {dataset, f"{dataset}_weight"}):
            yield f"objective.{name}: there is no data.{dataset} that it could apply to"


def teacher_plan(recipe: Recipe, token_id: TokenId) -> Plan | None:
    """The plan of a distillation's composed teacher; None for other objectives and for a member as the teacher.

    Raises:
        CompositionError: all that is wrong, paths beginning with `objective.teacher`.
    """
    teacher: str | Mapping[str, Any] | None = getattr(recipe.objective, "teacher", None)
    if teacher is None or isinstance(teacher, str):
        return None
    return member_plan(teacher, recipe.members, token_id, "objective.teacher")


def class_prompts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> ClassPrompts | None:
    """The class prompts' tokens, None for objectives without them. They stand behind what begins every text."""
    if not recipe.objective.class_prompts:
        return None
    from motet.training.data.tokens import Tokens

    tokens = Tokens(tokenizer)
    return ClassPrompts(tuple(tuple(ids) for ids in tokens.encode(recipe.objective.class_prompts)), len(tokens.prefix))


def class_problems(recipe: Recipe, datasets: Mapping[str, TokenDataset]) -> Iterator[str]:
    """Class prompts and named classes that are not those of the data."""
    named, found = recipe.objective.classes, datasets["train"].classes if "train" in datasets else ()
    if named and found and sorted(named) != list(found):
        yield (
            f"objective.clusters: {', '.join(named)}; the files of data.train are named {', '.join(map(str, found))}: "
            "one file for each cluster, of its name"
        )
    prompts = recipe.objective.class_prompts
    if prompts and "train" in datasets:
        classes = datasets["train"].classes
        if len(classes) != len(prompts):
            named = ", ".join(repr(label) for label in classes)
            yield f"objective.prompts: {len(prompts)} prompts for {len(classes)} classes ({named})"


def plays_rounds(recipe: Recipe, root: Path) -> bool:
    """Whether the recipe is one of self-play's rounds: its data are answers, not pairs that somebody made."""
    train = recipe.data.get("train")
    if recipe.objective.rounds_begin_as is None or train is None:
        return False
    return train.format != "preference" and guess_kind(train, root) != "pairs"


def as_documents(recipe: Recipe) -> Recipe:
    """The recipe over the same models and data, read as plain answers: what self-play's rounds begin with."""
    return recipe.model_copy(update={"objective": recipe.objective.rounds_begin_as})
