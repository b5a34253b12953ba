"""Totals are true: every task says beforehand how many requests it makes, whatever is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from motet.evaluation.tasks import AnyTask
from motet.evaluation.tasks.task import Task
from tests.evaluation.conftest import FakeApi, MakeBench

FILES = {"q.jsonl": 5, "r.jsonl": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "gap_closed": {"data": "q.jsonl", "base": "a", "tuned": "b"},
    "eft_grid": {"data": "q.jsonl", "grid": {"small": {"small": "a", "large": "b"}, "large": {"large": "b"}}},
    "tofu": {"forget": "q.jsonl", "splits": {"kept": "r.jsonl", "others": "r.jsonl"}, "reference": "b"},
    "ignorance": {"forget": "q.jsonl", "unknown": "r.jsonl"},
    "muse": {
        "verbatim": "q.jsonl",
        "forget_knowledge": {"data": "q.jsonl"},
        "retain_knowledge": {"data": "r.jsonl", "examples": "q.jsonl"},
        "privacy": {"forget": "q.jsonl", "holdout": "r.jsonl", "reference": "b"},
    },
    "robustness": {"forget": "q.jsonl", "retain": "r.jsonl"},
    "leak": {"forget": "q.jsonl", "retain": "r.jsonl", "samples": 150, "prompts": {"mine": "{question}"}},
    "extraction": {"data": "q.jsonl"},
    "quality": {"data": "q.jsonl", "base": "a", "repeats": 2},
}
TASKS: TypeAdapter[Task] = TypeAdapter(AnyTask)


def row(name: str, number: int) -> dict[str, Any]:
    item = {"question": f"{name}{number}?", "answer": "it is right", "value": "right", "paraphrased_question": "and?"}
    answers = {"paraphrased_answer": "para", "perturbed_answer": ["wrong"]}
    return {**item, **answers, "prompt": "once", "gt": "upon a time", "text": f"text {number}"}


def test_every_task_is_here() -> None:
    kinds = get_args(get_args(AnyTask)[0])
    assert set(SETTINGS) == {kind.model_fields["type"].default for kind in kinds}


@pytest.mark.parametrize("reply", ["", "right"])
@pytest.mark.parametrize("more", [{}, {"ignorant": "a"}])
@pytest.mark.parametrize("kind", SETTINGS)
async def test_as_many_are_over_as_were_announced(
    bench: MakeBench, fake: FakeApi, tmp_path: Path, kind: str, more: dict[str, str], reply: str
) -> None:
    for name, count in FILES.items():
        (tmp_path / name).write_text("".join(json.dumps(row(name, i)) + "\n" for i in range(count)))
    fake.say = lambda model, question: reply
    made = bench("a", "b")
    over: list[None] = []
    made.api.done = lambda: over.append(None)
    task = TASKS.validate_python({"type": kind, **SETTINGS[kind], **(more if kind == "ignorance" else {})})
    announced = task.requests(made)
    await task.run(made)
    assert len(over) == announced
    assert len(fake.bodies) == announced - (10 if kind == "quality" and not reply else 0)
