"""What objectives ask of their recipes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from motet.composers.errors import CompositionError
from motet.training.policies.requirements import class_problems, class_prompts, objective_problems, teacher_plan
from motet.training.recipe import Recipe
from tests.training.data.cases import byte_level

MEMBERS = {"large": {"path": "large"}, "small": {"path": "small"}}
PROXY = {"strategy": "proxy_tuning", "base": "large", "expert": "trained", "antiexpert": "small"}
FILES = {"files": ["a.jsonl"]}


def recipe(objective: dict[str, Any], data: tuple[str, ...] = ("train",), **changes: Any) -> Recipe:
    sections: dict[str, Any] = {
        "output": Path("out"),
        "model": {"path": "base"},
        "members": MEMBERS,
        "objective": objective,
        "data": dict.fromkeys(data, FILES),
        "schedule": {"steps": 1},
    }
    return Recipe.model_validate(sections | changes)


def no_token(text: str) -> None:
    """No text is exactly one token."""


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (
            recipe({"type": "gate", "assistant": "smal"}),
            "objective.assistant: no member 'smal'. Did you mean 'small'? Members: large, small",
        ),
        (recipe({"type": "gate", "assistant": "x"}, members={}), "objective.assistant: no member 'x'. Members: none"),
        (
            recipe({"type": "distill", "teacher": "larg"}),
            "objective.teacher: no member 'larg'. Did you mean 'large'? Members: ",
        ),
        (
            recipe({"type": "distill", "teacher": "large"}, batch={"packing": "wrap"}),
            "batch.packing: wrap cuts documents",
        ),
        (recipe({"type": "gate", "assistant": "small"}, through=PROXY), "through: the objective 'gate' reads"),
        (recipe({"type": "temperature_head"}, through=PROXY), "through: the objective 'temperature_head' reads"),
        (recipe({"type": "kto"}, batch={"rows": 4, "accumulate": 4}), "batch.rows: kto needs 2 documents"),
        (
            recipe({"type": "npo", "retain_weight": 2.0}, ("forget",)),
            "objective.retain_weight: there is no data.retain",
        ),
        (recipe({"type": "npo", "retain": "kl"}, ("forget",)), "objective.retain: there is no data.retain"),
    ],
)
def test_what_is_refused(made: Recipe, problem: str) -> None:
    (found,) = objective_problems(made)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "made",
    [
        recipe({"type": "gate", "assistant": "small"}),
        recipe({"type": "distill", "teacher": "large"}),
        recipe({"type": "kto"}),
        recipe({"type": "sft"}, through=PROXY),
        recipe({"type": "npo"}, ("forget",)),
        recipe({"type": "npo", "retain": "kl"}, ("forget", "retain")),
    ],
)
def test_what_is_in_order(made: Recipe) -> None:
    assert list(objective_problems(made)) == []


def test_composed_teachers() -> None:
    composition = {**PROXY, "expert": "small", "antiexpert": "large"}
    plan = teacher_plan(recipe({"type": "distill", "teacher": composition}), no_token)
    assert plan is not None
    assert [stream.model for stream in plan.streams] == ["large", "small"]
    assert teacher_plan(recipe({"type": "distill", "teacher": "large"}), no_token) is None
    assert teacher_plan(recipe({"type": "sft"}), no_token) is None
    with pytest.raises(CompositionError, match=r"objective\.teacher\.expert: unknown model 'trained'"):
        teacher_plan(recipe({"type": "distill", "teacher": PROXY}), no_token)


def test_class_prompts_and_their_number() -> None:
    made = recipe({"type": "gedi", "prompts": ["good", "bad"]})
    prompts = class_prompts(made, byte_level())
    assert prompts is not None
    assert [len(ids) for ids in prompts.ids] == [4, 3]  # one token per byte
    assert prompts.at == 0  # this tokenizer sets nothing before a text
    assert class_prompts(recipe({"type": "sft"}), byte_level()) is None
    fitting, others = SimpleNamespace(classes=("a", "b")), SimpleNamespace(classes=("a", "b", "c"))
    two: Any = {"train": fitting}
    three: Any = {"train": others}
    assert list(class_problems(made, two)) == []
    assert list(class_problems(made, three)) == ["objective.prompts: 2 prompts for 3 classes ('a', 'b', 'c')"]
