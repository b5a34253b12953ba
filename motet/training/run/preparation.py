"""Everything that a run needs but the models: checked as a whole before a weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from motet.composers.errors import CompositionError
from motet.composers.plan import Plan
from motet.composers.vocabulary import fingerprint
from motet.settings import offer
from motet.training.batch import PromptForm
from motet.training.data.dataset import TokenDataset, load_dataset
from motet.training.data.errors import DataError
from motet.training.data.reading import read_records
from motet.training.data.sampling import BatchSource
from motet.training.data.tokens import Tokens
from motet.training.objectives.objective import RecordKind
from motet.training.policies.requirements import (
    as_documents,
    class_problems,
    class_prompts,
    objective_problems,
    plays_rounds,
    record_problems,
    teacher_plan,
)
from motet.training.policies.through import TokenId, through_plan, views_of
from motet.training.policy import ClassPrompts
from motet.training.recipe import TRAINED, VALIDATION, Checkpoint, Fresh, Half, Lora, Recipe, SoftPrompt
from motet.training.run.errors import RunError
from motet.training.run.identity import data_hash, models_hash, recipe_hash
from motet.training.run.sources import locate, resolve_root, source_problems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """A recipe whose fields, models' files and data are in order.

    `plan` is that of `through`, `teaching` that of a composed teacher; `steps` the run's length; `validation` what is
    measured and not learnt, in the place of the objective's first dataset.
    """

    recipe: Recipe
    root: Path
    tokenizer: PreTrainedTokenizerBase
    datasets: Mapping[str, TokenDataset]
    source: BatchSource
    plan: Plan | None
    teaching: Plan | None
    classes: ClassPrompts | None
    steps: int
    validation: TokenDataset | None = None

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        return pad_id(self.tokenizer)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """What ends an answer in the training data beside EOS: the template's end of a turn where there are chats."""
        has_chats = any(data.primary == "chat" for data in self.datasets.values())
        end = Tokens(self.tokenizer).turn_end if has_chats else None
        return () if end is None else (end,)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of what decides the weights."""
        return {
            "recipe": recipe_hash(self.recipe),
            "data": data_hash(self.datasets),
            "models": models_hash(self.recipe, self.root),
        }


def prepare(recipe: Recipe, recipe_folder: Path, root: Path | None = None) -> Preparation:
    """Checks a recipe, its models' files and its data, and tokenises the data.

    Args:
        recipe: a valid one.
        recipe_folder: where a relative `root` starts, and the root where there is none.
        root: overrides the recipe's.

    Raises:
        RunError: all problems together.
    """
    problems = [*_field_problems(recipe), *objective_problems(recipe)]
    root = _attempt(problems, lambda: root or resolve_root(recipe.root, recipe_folder))
    if root is None:
        raise RunError(problems)
    if plays_rounds(recipe, root):
        recipe = as_documents(recipe)
    problems += _model_problems(recipe, root)
    tokenizer = _attempt(problems, lambda: _tokenizer(recipe, root)) if _has_tokenizer(recipe, root) else None
    if tokenizer is None:
        raise RunError(problems + _reading_problems(recipe, root))
    plan = _attempt(problems, lambda: _plan(recipe, _token_id(tokenizer)))
    teaching = _attempt(problems, lambda: teacher_plan(recipe, _token_id(tokenizer)))
    views = frozenset[PromptForm]().union(*(views_of(each) for each in (plan, teaching) if each is not None))
    datasets = _datasets(recipe, root, tokenizer, views, problems)
    problems += record_problems(recipe, datasets)
    validation = datasets.pop(VALIDATION, None)
    problems += class_problems(recipe, datasets)
    problems += _validation_problems(validation, datasets)
    source = None if problems else _attempt(problems, lambda: BatchSource(datasets, recipe, pad_id(tokenizer)))
    if problems or source is None:
        raise RunError(problems)
    classes = class_prompts(recipe, tokenizer)
    steps = recipe.schedule.steps or source.steps or 1
    return Preparation(recipe, root, tokenizer, datasets, source, plan, teaching, classes, steps, validation)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up; it is masked whatever it is."""
    known: Any = tokenizer
    return next((token for token in (known.pad_token_id, known.eos_token_id) if token is not None), 0)


def _attempt(problems: list[str], build: Callable[[], T]) -> T | None:
    """What `build` makes, or None with its problems added."""
    try:
        return build()
    except CompositionError as error:
        problems.append(error.message)
    except (DataError, RunError) as error:
        problems += error.problems
    return None


def _field_problems(recipe: Recipe) -> Iterator[str]:
    """What no single field can be blamed for alone."""
    wanted = _kinds(recipe)
    for name in recipe.data.keys() - wanted.keys():
        hint = offer(name, sorted(wanted))
        yield f"data.{name}: the objective {recipe.objective.type!r} reads no such dataset.{hint}"
    for name in wanted.keys() - recipe.data.keys() - recipe.objective.optional - {VALIDATION}:
        yield f"data.{name}: required by the objective {recipe.objective.type!r}"
    if VALIDATION in recipe.data and recipe.objective.rounds_begin_as is not None:
        yield f"data.{VALIDATION}: self-play makes its own pairs, of the training data alone"
    if TRAINED in recipe.members:
        yield f"members.{TRAINED}: the name belongs to the trained model"
    yield from _tuning_problems(recipe)


def _kinds(recipe: Recipe) -> Mapping[str, RecordKind]:
    """What the records of each dataset must be; those of `validation` are as the objective's first."""
    kinds = recipe.objective.datasets
    return {**kinds, VALIDATION: next(iter(kinds.values()))}


def _validation_problems(validation: TokenDataset | None, datasets: Mapping[str, TokenDataset]) -> Iterator[str]:
    """Classes are numbered in each dataset by itself."""
    learnt = next((dataset.classes for dataset in datasets.values() if dataset.classes), ())
    if validation is not None and validation.classes != learnt:
        named = ", ".join(map(repr, learnt))
        yield f"data.{VALIDATION}: its labels must be those of the training data: {named}"


def _tuning_problems(recipe: Recipe) -> Iterator[str]:
    tuning, steps = recipe.tuning, recipe.schedule.steps
    if tuning.writes_adapter:
        if isinstance(recipe.model, Fresh):
            yield "tuning.type: an adapter on random weights is of no use alone; set tuning.type=full"
        elif recipe.model.layers is not None:
            way = "tuning.merge: must be true" if isinstance(tuning, Lora) else "tuning.type: must be another one"
            yield f"{way} where model.layers cuts the base: an adapter needs its base as it was"
    if isinstance(tuning, SoftPrompt):
        yield from _soft_prompt_problems(recipe)
    if isinstance(tuning, Half) and steps is not None and tuning.rounds > steps:
        yield f"tuning.rounds: {tuning.rounds} rounds do not fit into {steps} steps"


def _soft_prompt_problems(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if objective.rounds_begin_as is not None:
        yield "tuning.type: each round of self-play begins with the weights of the last; allowed: lora, full, half"
    if objective.head_spec is not None:
        yield f"tuning.type: the head of {objective.type!r} is served beside whole models; allowed: lora, full, half"


def _model_problems(recipe: Recipe, root: Path) -> Iterator[str]:
    model = recipe.model
    if isinstance(model, Checkpoint):
        yield from source_problems("model.path", model.path, root, revision=model.revision)
    elif not Path(locate(model.tokenizer, root)).is_dir():
        yield from source_problems("model.tokenizer", model.tokenizer, root)
    for name, member in recipe.members.items():
        yield from source_problems(f"members.{name}.path", member.path, root, revision=member.revision)
    if recipe.expert.partner is not None:
        yield from source_problems("expert.partner", recipe.expert.partner, root)


def _has_tokenizer(recipe: Recipe, root: Path) -> bool:
    """Whether it is worth trying: a missing folder was told already."""
    path = recipe.model.path if isinstance(recipe.model, Checkpoint) else recipe.model.tokenizer
    folder = Path(locate(path, root))
    return (folder / "tokenizer_config.json").is_file() or not list(source_problems("", path, root))


def _reading_problems(recipe: Recipe, root: Path) -> list[str]:
    """What is wrong with the data as far as that can be told without a tokenizer."""
    kinds = _kinds(recipe)
    known = [(name, spec) for name, spec in recipe.data.items() if name in kinds]
    return [problem for name, spec in known for problem in read_records(name, spec, kinds[name], root)[1]]


def _tokenizer(recipe: Recipe, root: Path) -> PreTrainedTokenizerBase:
    """The trained model's; every member must have the same vocabulary."""
    from motet.training.run.models import load_tokenizer

    tokenizer = load_tokenizer(recipe.model, root)
    own = fingerprint(cast(Any, tokenizer))
    sound = {name: m for name, m in recipe.members.items() if not list(source_problems("", m.path, root))}
    different = [
        f"members.{name}: its vocabulary is not the trained model's"
        for name, member in sound.items()
        if fingerprint(cast(Any, load_tokenizer(member, root))) != own
    ]
    if different:
        raise RunError(different)
    return tokenizer


def _token_id(tokenizer: PreTrainedTokenizerBase) -> TokenId:
    def lookup(text: str) -> int | None:
        ids: Any = cast(Any, tokenizer).encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    return lookup


def _plan(recipe: Recipe, token_id: TokenId) -> Plan | None:
    return None if recipe.through is None else through_plan(recipe.through, recipe.members, token_id)


def _datasets(
    recipe: Recipe, root: Path, tokenizer: PreTrainedTokenizerBase, views: frozenset[PromptForm], problems: list[str]
) -> dict[str, TokenDataset]:
    """Every dataset that is in order; the others' problems are added."""
    loaded: dict[str, TokenDataset] = {}
    for name, kind in _kinds(recipe).items():
        if name not in recipe.data:
            continue
        spec = recipe.data[name]
        try:
            loaded[name] = load_dataset(
                name, spec, kind, tokenizer=tokenizer, root=root, batching=recipe.batch, views=views
            )
        except DataError as error:
            problems += error.problems
    return loaded
