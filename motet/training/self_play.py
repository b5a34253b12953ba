"""SPIN's rounds: the model answers the data's prompts, then learns to tell the given answers from its own.

Round k is an ordinary run on pairs (given answer, own answer of the model that round k − 1 left) in the folder
`OUTPUT.rounds`; the last one writes the recipe's output.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from motet.training.data.json_text import lines
from motet.training.data.messages import as_chat
from motet.training.data.records import Answer
from motet.training.objectives.preference import SelfPlay
from motet.training.policies.requirements import as_documents
from motet.training.recipe import VALIDATION, Checkpoint, Lora, Recipe
from motet.training.run.answers import generate
from motet.training.run.errors import RunError
from motet.training.run.models import load_model
from motet.training.run.preparation import Preparation, prepare
from motet.training.run.sources import resolve_root

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from motet.training.data.dataset import TokenDataset
    from motet.training.run.folder import Existing

PROMPTS_AT_ONCE = 64
MARK = "rounds.json"  # the recipe that a folder of rounds belongs to
Train = Callable[..., Path]  # motet.training.run.train.train


@dataclass(frozen=True)
class Rounds:
    """The files of a self-play run."""

    recipe: Recipe
    root: Path
    output: Path

    @property
    def count(self) -> int:
        return cast("SelfPlay", self.recipe.objective).rounds

    @property
    def folder(self) -> Path:
        return self.output.with_name(f"{self.output.name}.rounds")

    def pairs(self, number: int) -> Path:
        """The pairs of a round, counted from 1."""
        return self.folder / f"pairs-{number}.jsonl"

    def result(self, number: int) -> Path:
        """Where a round's model is written."""
        return self.output if number == self.count else self.folder / f"round-{number}"

    def round(self, number: int) -> Recipe:
        """A round's own recipe. All but the last one write whole weights, which the next one begins with."""
        recipe, model = self.recipe, self.recipe.model
        if number > 1:
            model = Checkpoint(path=str(self.result(number - 1).absolute()))
        tuning = recipe.tuning
        if isinstance(tuning, Lora) and number < self.count:
            tuning = tuning.model_copy(update={"merge": True})
        changes = {"files": (str(self.pairs(number).absolute()),), "format": "preference", "limit": None}
        data = {"train": recipe.data["train"].model_copy(update=changes)}
        seed = recipe.seed + number - 1
        return recipe.model_copy(update={"model": model, "tuning": tuning, "data": data, "seed": seed})


def play(
    recipe: Recipe,
    recipe_folder: Path,
    train: Train,
    *,
    root: Path | None = None,
    output: Path | None = None,
    existing: Existing = "refuse",
    tell: Callable[[str], None] = lambda line: None,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> Path:
    """All rounds of a recipe for which `requirements.plays_rounds`; the arguments are those of `run.train.train`.

    Args:
        train: runs one round's recipe.
        options: passed on to it.

    Raises:
        RunError: as `train` does; rounds of an earlier run where `existing` is `refuse`.
    """
    if VALIDATION in recipe.data:
        raise RunError(f"data.{VALIDATION}: self-play makes its own pairs, of the training data alone")
    root = root or resolve_root(recipe.root, recipe_folder)
    rounds = Rounds(recipe, root, output or recipe.output)
    _open(rounds, existing)
    for number in range(1, rounds.count + 1):
        state = _state(rounds, number, existing)
        if state is None:
            continue
        tell(f"round {number} of {rounds.count}")
        if not rounds.pairs(number).is_file():
            _write_pairs(rounds, number, tell)
        made, folder = rounds.round(number), rounds.result(number)
        last = report if number == rounds.count else None
        train(made, recipe_folder, root=root, output=folder, existing=state, tell=tell, report=last, **options)
    return rounds.output


def _state(rounds: Rounds, number: int, existing: Existing) -> Existing | None:
    """What a round's run shall do with its folder; None where it is finished."""
    if existing == "restart" and number == rounds.count:
        return "restart"
    folder = rounds.result(number)
    if _finished(folder):
        return None
    return "resume" if (folder / "run.json").is_file() else "refuse"


def _open(rounds: Rounds, existing: Existing) -> None:
    """Makes or clears the folder of the rounds."""
    mark = rounds.folder / MARK
    if existing == "restart" and mark.is_file():
        shutil.rmtree(rounds.folder)
    if existing == "refuse" and (rounds.folder.exists() or rounds.output.exists()):
        taken = rounds.output if rounds.output.exists() else rounds.folder
        raise RunError(f"output: {taken} exists: --resume goes on, --restart begins anew")
    content = rounds.recipe.model_dump_json()
    try:
        rounds.folder.mkdir(parents=True, exist_ok=True)
        if mark.is_file() and mark.read_text("utf-8") != content:
            raise RunError(f"output: {rounds.folder} holds rounds of another recipe; --restart replaces them")
        mark.write_text(content, "utf-8")
    except OSError as error:
        raise RunError(f"output: {rounds.folder} cannot be written: {error.strerror}") from error


def _finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "run.json").read_text("utf-8"))["finished"])
    except (OSError, ValueError, KeyError):
        return False


def _write_pairs(rounds: Rounds, number: int, tell: Callable[[str], None]) -> None:
    """The round's pairs; the file appears when it is whole."""
    this = rounds.round(number)
    documents = as_documents(this.model_copy(update={"data": rounds.recipe.data}))
    prepared = prepare(documents, rounds.root, rounds.root)
    model = load_model(this.model, rounds.root, tokenizer=prepared.tokenizer, seed=rounds.recipe.seed)
    model = cast(Any, model).to("cuda" if torch.cuda.is_available() else "cpu")
    answers = own_answers(model, prepared, cast("SelfPlay", rounds.recipe.objective), this.seed)
    rows = list(pair_rows(prepared.datasets["train"], answers))
    if not rows:
        raise RunError("data.train: the model gives an empty answer to every prompt; self-play needs others")
    if len(rows) < len(answers):
        tell(f"round {number}: {len(answers) - len(rows)} of {len(answers)} own answers are empty and left out")
    path = rounds.pairs(number)
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(lines(rows))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def own_answers(model: PreTrainedModel, prepared: Preparation, objective: SelfPlay, seed: int) -> list[str]:
    """The model's answer to every prompt of the data, in their order."""
    tokenizer: Any = prepared.tokenizer
    examples = prepared.datasets["train"].examples()
    prompts = [list(example.input_ids[: example.counted.index(True)]) for example in examples]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, str] = {}
    torch.manual_seed(seed)
    for start in range(0, len(order), PROMPTS_AT_ONCE):
        chosen = order[start : start + PROMPTS_AT_ONCE]
        ids = generate(
            model,
            [prompts[index] for index in chosen],
            prepared,
            max_tokens=objective.max_new_tokens,
            temperature=objective.temperature,
        )
        texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers |= dict(zip(chosen, texts, strict=True))
    return [answers[index] for index in range(len(prompts))]


def pair_rows(dataset: TokenDataset, answers: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    """Preference rows of the data's answers against `answers`; empty ones are left out.

    Raises:
        RunError: records without exactly one answer.
    """
    for record, answer in zip(dataset.records, answers, strict=True):
        part = record.sides[""]
        if not isinstance(part, Answer) or not part.has_one_answer:
            raise RunError(f"{record.source}: self-play needs a prompt with one answer")
        chosen = part.plain_completion
        own = answer if chosen != chosen.strip() else answer.strip()
        if not own.strip():
            continue
        if isinstance(part.prompt, str) and isinstance(part.completion, str):
            yield {"prompt": part.prompt, "chosen": chosen, "rejected": own}
        else:
            sides = {"chosen": chosen, "rejected": own}
            prompt = as_chat(part.messages[:-1])
            tools = {"tools": list(part.tools)} if part.tools else {}
            yield (
                {"prompt": prompt}
                | tools
                | {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}
            )
