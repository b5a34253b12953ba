"""What an objective asks of its recipe, checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motet.composers.plan import Plan
from motet.settings import nearest
from motet.training.data.reading import guess_kind
from motet.training.objectives.completion import Completion
from motet.training.objectives.counterfactual import Counterfactual
from motet.training.objectives.discriminator import GenerativeDiscriminator
from motet.training.objectives.distillation import Distillation
from motet.training.objectives.gate import Gate
from motet.training.objectives.preference import SelfPlay
from motet.training.objectives.temperature import Temperature
from motet.training.policies.through import TokenId, member_plan
from motet.training.policy import ClassPrompts
from motet.training.recipe import VALIDATION, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from motet.training.data.dataset import TokenDataset


def objective_problems(recipe: Recipe) -> Iterator[str]:
    """What the objective needs of other fields and does not get, one line each."""
    objective = recipe.objective
    if recipe.through is not None and isinstance(objective, Gate | Temperature | GenerativeDiscriminator):
        yield (
            f"through: the objective {objective.type!r} reads one model's hidden states or class prompts, "
            "not a composition; leave through out"
        )
    if isinstance(objective, Gate):
        yield from _member_problems("objective.assistant", objective.assistant, recipe)
    if isinstance(objective, Counterfactual):
        yield from _member_problems("objective.target", objective.target, recipe)
    if isinstance(objective, Distillation):
        yield from _distillation_problems(objective, recipe)
    yield from _row_problems(recipe)
    yield from _unread_settings(recipe)


def _member_problems(path: str, name: str, recipe: Recipe) -> Iterator[str]:
    if name not in recipe.members:
        members = ", ".join(sorted(recipe.members)) or "none"
        yield f"{path}: no member {name!r}.{nearest(name, recipe.members)} Members: {members}"


def _distillation_problems(objective: Distillation, recipe: Recipe) -> Iterator[str]:
    if isinstance(objective.teacher, str):
        yield from _member_problems("objective.teacher", objective.teacher, recipe)
    if recipe.batch.packing == "wrap":
        yield "batch.packing: wrap cuts documents, and a teacher's distributions are stored whole; allowed: none, fit"


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
    if not isinstance(recipe.objective, GenerativeDiscriminator):
        return None
    from motet.training.data.tokens import Tokens

    tokens = Tokens(tokenizer)
    return ClassPrompts(tuple(tuple(ids) for ids in tokens.encode(recipe.objective.prompts)), len(tokens.prefix))


def class_problems(recipe: Recipe, datasets: Mapping[str, TokenDataset]) -> Iterator[str]:
    """Class prompts that do not fit the classes of the data."""
    objective = recipe.objective
    if isinstance(objective, GenerativeDiscriminator) and "train" in datasets:
        classes = datasets["train"].classes
        if len(classes) != len(objective.prompts):
            named = ", ".join(repr(label) for label in classes)
            yield f"objective.prompts: {len(objective.prompts)} prompts for {len(classes)} classes ({named})"


def plays_rounds(recipe: Recipe, root: Path) -> bool:
    """Whether the recipe is one of self-play's rounds: its data are answers, not pairs that somebody made."""
    train = recipe.data.get("train")
    if not isinstance(recipe.objective, SelfPlay) or train is None:
        return False
    return train.format != "preference" and guess_kind(train, root) != "pairs"


def as_documents(recipe: Recipe) -> Recipe:
    """The recipe over the same models and data, read as plain answers: what self-play's rounds begin with."""
    return recipe.model_copy(update={"objective": Completion()})
