"""The end of a run says what was made, and in plain words where nothing was learnt."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from motet.operator.file import load
from motet.training.recipe import Recipe
from motet.training.run.metrics import Metrics
from motet.training.run.outcome import operator_lines, outcome
from motet.training.run.train import Interrupted, train
from motet.training.run.watch import Look
from tests.training.run.test_train import weights
from tests.training.run.workshop import recipe, write_rows

VALIDATED = {name: {"files": ["train.jsonl"], "limit": limit} for name, limit in (("train", 40), ("validation", 10))}
CARD = {"role": "expert", "partner": "base", "strategy": "proxy_tuning"}


def ended(chosen: Recipe, root: Path) -> list[str]:
    lines: list[str] = []
    train(chosen, root=root, report=lines.append)
    return lines


def test_a_run_ends_with_what_it_made(root: Path, tmp_path: Path) -> None:
    chosen = recipe(
        tmp_path / "run", data=VALIDATED, schedule={"steps": 40}, tuning={"type": "lora", "r": 2}, expert=CARD
    )
    lines = ended(chosen, root)
    text = "\n".join(lines)
    assert lines[0].startswith(f"made       {tmp_path / 'run'}: a LoRA adapter (r 2) on base, ")
    assert lines[0].endswith(" MiB, 40 steps of sft")
    for part in (
        "loss       ",
        "validation ",
        " of 40 steps",
        "asked      ",
        "How is the house of red town?",
        "before     ",
        "after      ",
    ):
        assert part in text, part
    assert "warning" not in text
    assert (tmp_path / "run" / "report.json").is_file()


def test_watching_changes_nothing_of_a_run(root: Path, tmp_path: Path) -> None:
    tuning = {"type": "lora", "r": 2, "dropout": 0.2, "merge": True}
    plain = weights(train(recipe(tmp_path / "a", tuning=tuning), root=root))
    chosen = recipe(tmp_path / "b", tuning=tuning, data={**VALIDATED, "train": {"files": ["train.jsonl"]}})
    ended(chosen, root)
    watched = weights(chosen.output)
    assert all(torch.equal(watched[name], plain[name]) for name in plain)


def test_references_are_there_until_the_end(root: Path, tmp_path: Path) -> None:
    """Adapters are merged at the end, and a preference's reference is the model without them."""
    pairs = [{"prompt": "How is it?", "chosen": " red", "rejected": " blue"} for _ in range(4)]
    write_rows(root / "pairs.jsonl", pairs)
    tuning = {"type": "lora", "r": 2, "merge": True}
    chosen = recipe(
        tmp_path / "run", tuning=tuning, objective={"type": "dpo"}, data={"train": {"files": ["pairs.jsonl"]}}
    )
    assert any("loss" in line for line in ended(chosen, root))


def test_a_run_that_learnt_nothing_says_so(root: Path, tmp_path: Path) -> None:
    lines = ended(recipe(tmp_path / "run", optimizer={"type": "adamw", "lr": 1e-9}), root)
    assert any(line.startswith("warning: the loss did not fall, so this is no expert yet: raise") for line in lines)


def look(step: int, loss: float, validation: float | None = None) -> Look:
    return Look(step, loss, validation, "q", "a")


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([look(0, 3.0), look(9, 3.5)], "warning: the loss did not fall, so this is no expert yet: lower optimizer.lr"),
        ([look(0, -1.0), look(9, -0.5)], "warning: the loss did not fall"),
        ([look(0, 3.0, 2.0), look(9, 0.5, 2.5)], "warning: the validation got worse: fewer steps"),
        ([look(0, 3.0, 2.0), look(5, 1.0, 1.0), look(9, 0.5, 1.5)], "better before the end: schedule.steps=5"),
        ([look(0, 3.0, 2.0), look(5, 1.0, 1.0), look(9, 0.5, 0.5)], None),
        ([look(0, -1.0), look(9, -5.0)], None),
    ],
)
def test_verdicts(tmp_path: Path, looks: list[Look], said: str | None) -> None:
    warnings = [line for line in outcome(recipe(tmp_path), tmp_path, tmp_path, [], looks) if line.startswith("warning")]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_a_resumed_run_remembers_its_beginning(root: Path, tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "run", schedule={"steps": 8})

    def stop(metrics: Metrics) -> None:
        if metrics.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    lines: list[str] = []
    with pytest.raises(Interrupted):
        train(chosen, root=root, progress=stop, report=lines.append)
    assert not lines
    train(chosen, root=root, existing="resume", report=lines.append)
    assert any(line.startswith("before     ") for line in lines)


@pytest.mark.parametrize("strategy", ["proxy_tuning", "unlearn", "eft", None])
def test_the_operators_file_is_one(root: Path, tmp_path: Path, strategy: str | None) -> None:
    roles = {"proxy_tuning": "expert", "unlearn": "assistant", "eft": "tuned", None: "expert"}
    card = {"role": roles[strategy], "partner": "base", "strategy": strategy}
    through = {"strategy": "proxy_tuning", "base": {"model": "other"}, "expert": "trained", "antiexpert": "other"}
    chosen = recipe(tmp_path / "run", expert=card, members={"other": {"path": "other"}}, through=through)
    lines = operator_lines(chosen, root, tmp_path / "run")
    file = tmp_path / "models.yaml"
    file.write_text("\n".join(lines))
    loaded = load(file, check_paths=False)
    assert "run" in loaded.settings.models
    assert (strategy is not None) == ("run-composed" in yaml.safe_load(file.read_text()).get("compositions", {}))
