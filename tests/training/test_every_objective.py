"""Every objective trains from a recipe to a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import torch as safetensors

from motet.training.objectives import OBJECTIVES
from motet.training.objectives.objective import ObjectiveSetting, RecordKind
from motet.training.run.train import train
from tests.training.run.workshop import THINGS, WORDS, build, recipe, records, write_rows

COMPOSITION = {"strategy": "proxy_tuning", "base": "large", "expert": "trained", "antiexpert": "small"}
MEMBERS = {"large": {"path": "other"}, "small": {"path": "base"}}
# a file for each kind of dataset, and the settings without which an objective cannot be tried
DATA: dict[RecordKind, str] = {
    "documents": "train.jsonl",
    "pairs": "pairs.jsonl",
    "labelled": "labelled.jsonl",
    "classes": "classes.jsonl",
    "counterfactuals": "counterfactual.jsonl",
    "clusters": "clusters/*.jsonl",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "distill": {"teacher": {**COMPOSITION, "expert": "large"}},
    "counterfactual": {"target": "large"},
    "gate": {"assistant": "large", "initial_steps": 3},
    "router": {"assistant": "large", "top": 5, "width": 8},
    "gedi": {"prompts": ["red", "blue"]},
    "temperature_head": {"form": "robust"},
    "similarity_head": {"clusters": ["tower", "house"]},
}
WITH_HEAD = {name for name, kind in OBJECTIVES.items() if kind.head is not ObjectiveSetting.head}
OF_ONE_MODEL = {name for name, kind in OBJECTIVES.items() if kind.one_model}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("objectives"))
    rows = records()
    others = [*rows[1:], rows[0]]
    write_rows(folder / "pairs.jsonl", [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"] + " No."}
        for row, other in zip(rows, others, strict=True)
    ])  # fmt: skip
    write_rows(folder / "counterfactual.jsonl", [
        {**row, "counterfactual_prompt": other["prompt"]} for row, other in zip(rows, others, strict=True)
    ])  # fmt: skip
    write_rows(folder / "labelled.jsonl", [{**row, "label": n % 3 > 0} for n, row in enumerate(rows)])
    write_rows(folder / "classes.jsonl", [
        {"text": f"The {thing} of {word} town.", "label": "colour" if WORDS.index(word) < 5 else "size"}
        for thing in THINGS
        for word in WORDS
    ])  # fmt: skip
    (folder / "clusters").mkdir()
    for thing in ("house", "tower"):
        write_rows(folder / "clusters" / f"{thing}.jsonl", [row for row in rows if thing in row["prompt"]])
    return folder


def test_objectives_with_settings_and_with_heads_are_there() -> None:
    assert SETTINGS.keys() <= OBJECTIVES.keys()
    assert {"gate", "gedi", "router", "similarity_head", "temperature_head"} <= WITH_HEAD & OF_ONE_MODEL


def run(workshop: Path, tmp_path: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of a short run."""
    objective = {"type": name, **SETTINGS.get(name, {})}
    data = {dataset: {"files": [DATA[kind]]} for dataset, kind in OBJECTIVES[name].datasets.items()}
    made = recipe(
        tmp_path / "out", objective=objective, data=data, members=MEMBERS, schedule={"steps": 3, "warmup": 0},
        **changes,
    )  # fmt: skip
    train(made, root=workshop)
    return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_trains(workshop: Path, tmp_path: Path, name: str) -> None:
    metrics = run(workshop, tmp_path, name)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    head = tmp_path / "out" / "head.safetensors"
    assert head.is_file() == (name in WITH_HEAD)
    if name in WITH_HEAD:
        assert any(bool(value.any()) for value in safetensors.load_file(head).values())


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - OF_ONE_MODEL))
def test_it_trains_through_a_composition(workshop: Path, tmp_path: Path, name: str) -> None:
    assert run(workshop, tmp_path, name, through=COMPOSITION)


def test_targets_outside_of_a_mask_are_told(workshop: Path, tmp_path: Path) -> None:
    contrastive = {"strategy": "contrastive", "base": "trained", "amateur": "small", "alpha": 0.99}
    shares = [line["parts"]["masked"] for line in run(workshop, tmp_path, "sft", through=contrastive)]
    assert all(0 <= share <= 1 for share in shares)
    assert any(share > 0 for share in shares)


@pytest.mark.parametrize("name", ["sft", "dpo", "npo", "kto"])
def test_it_trains_adapters_on_packed_rows(workshop: Path, tmp_path: Path, name: str) -> None:
    packed = {"rows": 4, "packing": "fit", "max_length": 64}
    assert run(workshop, tmp_path, name, tuning={"type": "lora", "r": 2}, batch=packed)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
