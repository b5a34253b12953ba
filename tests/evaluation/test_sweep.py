"""Sweeps over a server whose scores are a known function of the weight."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from rich.console import Console

import motet.evaluation.run as run_module
from motet.evaluation.recipe import Recipe, Select, Sweep
from motet.evaluation.settings import RecipeError, validated
from motet.evaluation.sweep import Swept, chosen_of, evaluate_sweep, front_of
from motet.evaluation.sweep_report import draw, print_sweep, write_sweep
from tests.evaluation.conftest import FakeApi

TREE: dict[str, Any] = {
    "output": "set by each test",
    "api": {"server": "http://fake"},
    "subjects": {
        "retain": "retain",
        "unlearned": {"composition": {"strategy": "unlearn", "base": "large", "weight": 0.0}},
    },
    "tasks": [
        {"type": "tofu", "forget": "f.jsonl", "splits": {"kept": "k.jsonl"}, "reference": "retain"},
        {"type": "ignorance", "forget": "f.jsonl", "unknown": "u.jsonl", "ignorant": "retain"},
    ],
    "sweep": {
        "subject": "unlearned",
        "over": {"weight": [0.0, 1.0, 2.0]},
        "front": [{"measure": "forget quality", "log": True}, {"measure": "model utility"}],
        "select": {"measure": "ignorance distance", "better": "min"},
    },
}


def rows(prefix: str) -> str:
    item = {"answer": "right", "paraphrased_answer": "para", "perturbed_answer": ["wrong"]}
    return "".join(json.dumps({"question": f"{prefix}{i}?", **item}) + "\n" for i in range(8))


def score(model: str, question: str, text: str) -> list[float]:
    """The forgotten answer loses a factor e per unit of weight and would be unknown at 1; kept ones lose a little."""
    weight = float(model.split()[1]) if model.startswith("unlearn") else None
    spread = 0.1 * int(question[1])  # so that truth ratios are no ties
    if text == "wrong":
        return [-3.0]
    if question[0] == "u":
        return [-3.0 + spread]
    if question[0] == "f":
        return [-3.0 + spread if weight is None else -2.0 - weight + spread]
    return [-0.1 if weight is None else -0.1 - 0.05 * weight]


@pytest.fixture
def fake_server(fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """`connect` leads to the fake application."""
    import httpx2
    from openai import DefaultAsyncHttpxClient

    @asynccontextmanager
    async def connect(url: str, key: str) -> AsyncGenerator[AsyncOpenAI]:
        client = DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(fake.app))
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=client) as sdk:
            yield sdk

    monkeypatch.setattr(run_module, "connect", connect)
    fake.score, fake.say = score, lambda model, question: "right"
    return fake


@pytest.fixture
def swept(fake_server: FakeApi, tmp_path: Path) -> Swept:
    for name in "fku":
        (tmp_path / f"{name}.jsonl").write_text(rows(name))
    return evaluate_sweep(validated(Recipe, TREE | {"output": tmp_path / "out"}), tmp_path)


def test_the_weight_is_chosen_by_ignorance_and_it_is_the_one_that_the_reference_would_choose(swept: Swept) -> None:
    quality = {name: row["forget quality"] for name, row in swept.rows.items()}
    assert quality["unlearned weight=1.0"] == pytest.approx(1)
    assert quality["unlearned weight=0.0"] == pytest.approx(2 / math.comb(16, 8))
    assert swept.chosen == "unlearned weight=1.0"
    assert swept.rows["unlearned weight=1.0"]["ignorance distance"] == 0
    assert set(swept.rows) == {"retain", *(f"unlearned weight={w}" for w in (0.0, 1.0, 2.0))}
    assert swept.front == {"unlearned weight=0.0", "unlearned weight=1.0"}


def test_every_file_is_written(swept: Swept) -> None:
    files = {file.name: file for file in write_sweep(swept)}
    assert set(files) == {
        "results.json", "results.md", "items.jsonl", "sweep.json", "sweep.md", "sweep.csv", "sweep.png", "sweep.svg"
    }  # fmt: skip
    assert all(file.stat().st_size for file in files.values())
    with files["sweep.csv"].open() as table:
        points = list(csv.DictReader(table))
    assert [point["weight"] for point in points] == ["", "0.0", "1.0", "2.0"]
    assert float(points[2]["forget quality"]) == pytest.approx(1)
    assert "Pareto" in points[2]["mark"]
    assert json.loads(files["sweep.json"].read_text())["chosen"] == swept.chosen
    assert files["sweep.png"].read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in files["items.jsonl"].read_text().splitlines()]
    assert {record["task"] for record in records} == {"tofu", "ignorance"}
    assert "(Pareto" in files["sweep.md"].read_text()


def test_the_table_names_the_choice(swept: Swept) -> None:
    console = Console(width=200, record=True, file=StringIO())
    print_sweep(console, swept)
    reason = "the lowest 'ignorance distance' of the grid"
    assert f"chosen: {swept.chosen} ({reason})" in console.export_text()


def test_a_choice_behind_the_front_says_why(swept: Swept) -> None:
    behind = replace(swept, front=frozenset({"unlearned weight=0.0"}))
    assert behind.choice == (
        "the lowest 'ignorance distance' of the grid; not on the Pareto front: 'ignorance distance' is not an axis of "
        "the front"
    )
    (table,) = [file for file in write_sweep(behind) if file.name == "sweep.md"]
    assert f"Chosen: {swept.chosen} ({behind.choice})." in table.read_text()
    first = Select(rule="first", measure="model utility", at_least=0.5)
    chosen = replace(swept, sweep=swept.sweep.model_copy(update={"select": first}))
    assert chosen.choice == "the first point whose 'model utility' reaches 0.5"
    assert replace(chosen, chosen=None).choice == "no point's 'model utility' reaches 0.5"
    assert replace(swept, sweep=swept.sweep.model_copy(update={"select": None})).choice is None


def test_the_figure_says_what_its_labels_and_its_star_are(swept: Swept, tmp_path: Path) -> None:
    draw(swept, [tmp_path / "sweep.svg"])
    comments = re.findall("<!-- (.+?) -->", (tmp_path / "sweep.svg").read_text())  # the texts that are drawn
    assert {"0.0", "1.0", "2.0", "retain", "labels of the grid's points: weight"} <= set(comments)
    assert "chosen: the lowest 'ignorance distance' of the grid" in comments


def test_rules_of_choice() -> None:
    table: dict[str, dict[str, float | None]] = {
        "a": {"p": 0.01, "d": 0.9},
        "b": {"p": 0.2, "d": 0.3},
        "c": {"p": 0.6, "d": 0.3},
        "e": {"p": None, "d": None},
    }
    assert chosen_of(Select(rule="first", measure="p", at_least=0.05), table) == "b"
    assert chosen_of(Select(rule="first", measure="p", at_least=0.9), table) is None
    assert chosen_of(Select(measure="p"), table) == "c"
    assert chosen_of(Select(measure="d", better="min"), table) == "b"  # the first of equals
    assert chosen_of(None, table) is None


def test_the_front_minimises_where_less_is_better() -> None:
    front = [{"measure": "d", "better": "min"}, {"measure": "u"}]
    sweep = Sweep.model_validate({"subject": "s", "over": {"w": [1]}, "front": front})
    table: dict[str, dict[str, float | None]] = {
        "a": {"d": 0.1, "u": 0.5},
        "b": {"d": 0.2, "u": 0.5},
        "c": {"d": 0.2, "u": 0.6},
        "none": {"d": None, "u": 1.0},
    }
    assert front_of(sweep, table) == {"a", "c"}


def test_measures_that_nothing_measures_are_refused(fake_server: FakeApi, tmp_path: Path) -> None:
    for name in "fku":
        (tmp_path / f"{name}.jsonl").write_text(rows(name))
    sweep = TREE["sweep"] | {"front": [{"measure": "forget qualty"}, {"measure": "model utility"}]}
    recipe = validated(Recipe, TREE | {"output": tmp_path / "out", "sweep": sweep})
    with pytest.raises(RecipeError, match=r"no task measures 'forget qualty'. Did you mean 'forget quality'"):
        evaluate_sweep(recipe, tmp_path)


def test_fields_that_cannot_be_set_and_recipes_without_a_sweep_are_refused(tmp_path: Path) -> None:
    deep = TREE["sweep"] | {"over": {"base.deep": [1]}}
    with pytest.raises(RecipeError, match=r"sweep.over: 'deep' cannot be set"):
        evaluate_sweep(validated(Recipe, TREE | {"output": tmp_path, "sweep": deep}), tmp_path)
    with pytest.raises(RecipeError, match=r"sweep: required"):
        evaluate_sweep(validated(Recipe, TREE | {"output": tmp_path, "sweep": None}), tmp_path)


def test_missing_files_are_told_together(fake_server: FakeApi, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        evaluate_sweep(validated(Recipe, TREE | {"output": tmp_path / "out"}), tmp_path)
    assert len(refused.value.problems) == 3
