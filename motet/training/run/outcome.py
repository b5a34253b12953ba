"""What the end of a run says: what was made, whether it learnt anything, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from motet.composers.strategies import STRATEGIES
from motet.training.recipe import Checkpoint, Lora, Recipe, SoftPrompt
from motet.training.run.sources import locate
from motet.training.run.watch import Look

NOTHING_LEARNT = 0.01  # share of its beginning by which a loss must fall
SHOWN = 160  # characters of prompts and answers
LARGER, UNTUNED = "large", "untuned"


def outcome(recipe: Recipe, root: Path, output: Path, files: Sequence[str], looks: Sequence[Look]) -> Iterator[str]:
    """Lines for the user.

    Args:
        root: where the recipe's relative paths start.
        files: names of the result's files.
        looks: in the order of their steps; the last one is the result's.
    """
    size = sum((output / name).stat().st_size for name in files)
    steps = f"{looks[-1].step:,} steps of {recipe.objective.type}"
    yield f"made       {output}: {_kind(recipe)}, {size / 2**20:.1f} MiB, {steps}"
    yield from _learnt(looks)
    yield from _answers(looks)
    audit = f"motet audit {output}    # what it learnt; "
    yield f"look       {'' if isinstance(recipe.tuning, SoftPrompt) else audit}motet experts check {output}"
    yield "serve      motet serve models.yaml, where models.yaml says:"
    yield from (f"             {line}" for line in operator_lines(recipe, root, output))


def _kind(recipe: Recipe) -> str:
    base = recipe.model.path if isinstance(recipe.model, Checkpoint) else "new weights"
    tuning = recipe.tuning
    if isinstance(tuning, SoftPrompt):
        return f"a soft prompt of {tuning.tokens} virtual tokens in front of {base}"
    if isinstance(tuning, Lora) and not tuning.merge:
        return f"a LoRA adapter (r {tuning.r}) on {base}"
    return f"whole weights, {tuning.type} tuning of {base}"


def _learnt(looks: Sequence[Look]) -> Iterator[str]:
    first, last = looks[0], looks[-1]
    if first.step:  # begun without being watched
        yield f"loss       {last.loss:.4g} on the first training rows"
        return
    yield f"loss       {first.loss:.4g} → {last.loss:.4g} on the first training rows"
    if last.loss > first.loss - NOTHING_LEARNT * abs(first.loss):
        way = "lower" if last.loss > first.loss else "raise"
        yield f"warning: the loss did not fall, so this is no expert yet: {way} optimizer.lr, or train for more steps"
    measured = [(look.validation, look.step) for look in looks if look.validation is not None]
    if measured:
        yield from _validated(measured)


def _validated(measured: Sequence[tuple[float, int]]) -> Iterator[str]:
    (first, _), (last, end) = measured[0], measured[-1]
    best, step = min(measured)
    yield f"validation {first:.4g} → {last:.4g}, best {best:.4g} after {step:,} of {end:,} steps"
    if last >= first:
        yield "warning: the validation got worse: fewer steps, a lower optimizer.lr, or more data"
    elif last > best + NOTHING_LEARNT * abs(first):
        yield f"warning: the validation was better before the end: schedule.steps={step:,}, or more data"


def _answers(looks: Sequence[Look]) -> Iterator[str]:
    if looks[-1].answer is None:
        return
    yield f"asked      {_short(looks[-1].prompt)}"
    if not looks[0].step:
        yield f"before     {_short(looks[0].answer)}"
    yield f"after      {_short(looks[-1].answer)}"


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return (line if len(line) <= SHOWN else f"{line[:SHOWN]}…") or "(nothing)"


def operator_lines(recipe: Recipe, root: Path, output: Path) -> list[str]:
    """An operator's file with the result in it, composed as its card recommends."""
    name, card = recipe.name or output.name, recipe.expert
    models: dict[str, Any] = {name: {"path": str(output.absolute())}}
    if isinstance(recipe.tuning, SoftPrompt) and isinstance(recipe.model, Checkpoint):
        behind = locate(recipe.model.path, root)
        models[name]["base"] = UNTUNED if card.partner is not None and locate(card.partner, root) == behind else "plain"
        models[models[name]["base"]] = {"path": behind}
    tree: dict[str, Any] = {"models": models}
    partners = None if card.strategy is None else STRATEGIES[card.strategy].partners
    if card.partner is not None and partners is not None:
        expert, partner = partners
        models[UNTUNED] = {"path": locate(card.partner, root)}
        roles = {expert: name, partner: UNTUNED}
        if "base" not in roles:
            models[LARGER] = {"path": _larger(recipe, root)}
            roles = {"base": LARGER, **roles}
        tree["compositions"] = {f"{name}-composed": {"strategy": card.strategy, **roles}}
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=1000).splitlines()


def _larger(recipe: Recipe, root: Path) -> str:
    """The base that the expert was trained through, or a place to write one."""
    base: object = (recipe.through or {}).get("base")
    named = cast("dict[str, object]", base).get("model") if isinstance(base, dict) else base
    member = recipe.members.get(str(named))
    return "PATH-OF-A-LARGER-MODEL" if member is None else locate(member.path, root)
