"""Every objective trains from a recipe to a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import torch as safetensors

from motet.training.objectives import OBJECTIVES
from motet.training.run.train import train
from tests.training.run.workshop import THINGS, WORDS, build, recipe, records, write_rows

COMPOSITION = {"strategy": "proxy_tuning", "base": "large", "expert": "trained", "antiexpert": "small"}
MEMBERS = {"large": {"path": "other"}, "small": {"path": "base"}}
PLAIN, PAIRS, LABELLED, CLASSES = ({"files": [f"{name}.jsonl"]} for name in ("train", "pairs", "labelled", "classes"))
FORGET = {"forget": PLAIN, "retain": PLAIN}

CASES: dict[str, dict[str, Any]] = {
    "sft": {"data": {"train": PLAIN}},
    "dpo": {"data": {"train": PAIRS}},
    "kto": {"data": {"train": LABELLED}},
    "spin": {"data": {"train": PAIRS}},
    "distill": {"objective": {"teacher": {**COMPOSITION, "expert": "large"}}, "data": {"train": PLAIN}},
    "assistant": {"data": {**FORGET, "nobody": PLAIN}},
    "counterfactual": {
        "objective": {"target": "large"},
        "data": {"forget": {"files": ["counterfactual.jsonl"]}, "retain": PLAIN},
    },
    "npo": {"data": FORGET},
    "ga": {"data": {"forget": PLAIN}},
    "ga_gd": {"data": FORGET},
    "ga_kl": {"data": FORGET},
    "idk": {"data": {"refusals": PLAIN, "retain": PLAIN}},
    "gate": {"objective": {"assistant": "large", "initial_steps": 3}, "data": {"train": PLAIN}},
    "gedi": {"objective": {"prompts": ["red", "blue"]}, "data": {"train": CLASSES}},
    "temperature_head": {"objective": {"form": "robust"}, "data": {"train": PLAIN}},
}
WITH_HEAD = {"gate", "gedi", "temperature_head"}


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
    return folder


def test_every_objective_is_tried() -> None:
    assert CASES.keys() == OBJECTIVES.keys()


def run(workshop: Path, tmp_path: Path, name: str, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of a short run."""
    case = CASES[name]
    objective = {"type": name, **case.get("objective", {})}
    made = recipe(
        tmp_path / "out", objective=objective, data=case["data"], members=MEMBERS, schedule={"steps": 3, "warmup": 0},
        **changes,
    )  # fmt: skip
    train(made, root=workshop)
    return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_it_trains(workshop: Path, tmp_path: Path, name: str) -> None:
    metrics = run(workshop, tmp_path, name)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    head = tmp_path / "out" / "head.safetensors"
    assert head.is_file() == (name in WITH_HEAD)
    if name in WITH_HEAD:
        assert any(bool(value.any()) for value in safetensors.load_file(head).values())


@pytest.mark.parametrize("name", sorted(CASES.keys() - WITH_HEAD))
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
