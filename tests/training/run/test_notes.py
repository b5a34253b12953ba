"""What may not be meant is said before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from motet.training.run.notes import notes
from motet.training.run.preparation import prepare
from tests.training.run.workshop import recipe

PACKED = {"rows": 16, "max_length": 64, "packing": "fit", "accumulate": 8}


def said(root: Path, output: Path, **changes: Any) -> list[str]:
    return list(notes(prepare(recipe(output, **changes), root)))


def test_a_usual_run_has_a_line_per_dataset(root: Path, tmp_path: Path) -> None:
    (line,) = said(root, tmp_path / "run", schedule={"steps": 30})
    assert line.startswith("train: 60 records, ")
    assert line.endswith(" tokens learnt; 30 steps of up to 4 rows, 2 epochs")


def test_small_data_are_said_to_be_small(root: Path, tmp_path: Path) -> None:
    data = {"train": {"files": ["train.jsonl"], "limit": 12}}
    lines = said(root, tmp_path / "run", data=data, batch=PACKED, schedule={"epochs": 2, "warmup": 10})
    assert "packed rows" in lines[0]
    notes_said = "\n".join(lines[1:])
    for part in (
        "note: batch.rows: 16, but data.train fills ",
        "note: batch.accumulate: 8, but a step has ",
        "note: schedule.warmup: 10 steps are more than half of 2; warming up over 1",
        "note: 2 steps in all, which is few; batch.packing=none batch.rows=3 ",
        "schedule.epochs=10 makes 40",
    ):
        assert part in notes_said, part


def test_the_advice_gives_what_it_promises(root: Path, tmp_path: Path) -> None:
    data = {"train": {"files": ["train.jsonl"], "limit": 12}}
    prepared = prepare(recipe(tmp_path / "run", data=data, batch={"rows": 3}, schedule={"epochs": 10}), root)
    assert prepared.steps == 40
    assert len(list(notes(prepared))) == 1


def test_data_that_are_read_too_often_or_in_part(root: Path, tmp_path: Path) -> None:
    often = {"train": {"files": ["train.jsonl"], "limit": 4}}
    assert "data.train is read 40 times" in said(root, tmp_path / "run", data=often, schedule={"steps": 40})[1]
    lines = said(root, tmp_path / "run", batch={"rows": 1}, schedule={"steps": 30})
    assert "data.train: only 50% of it is read in 30 steps" in lines[1]


def test_members_that_nothing_names_are_told(root: Path, tmp_path: Path) -> None:
    members = {"other": {"path": "other"}, "base": {"path": "base"}}
    through = {"strategy": "proxy_tuning", "base": "other", "expert": "trained", "antiexpert": {"model": "other"}}
    lines = said(root, tmp_path / "run", members=members, through=through, schedule={"steps": 30})
    assert lines[1:] == [
        "note: members.base: nothing names it, yet it is loaded; name it in through or objective, or leave it out"
    ]


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 1000])
def test_the_warm_up_is_a_share_of_short_runs(root: Path, tmp_path: Path, steps: int) -> None:
    schedule = recipe(tmp_path, schedule={"steps": steps}).schedule
    assert schedule.warmup_steps(steps) == min(10, steps // 10)
    given = recipe(tmp_path, schedule={"steps": steps, "warmup": 10}).schedule
    assert given.warmup_steps(steps) == min(10, steps // 2)
