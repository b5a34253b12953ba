"""Recipes as users write them: files, names, overrides, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from motet.settings import override
from motet.training.recipe import AdamW, Full, Lora
from motet.training.run import recipe_file
from motet.training.run.errors import RunError
from motet.training.run.folder import recipe_yaml
from motet.training.run.recipe_file import RecipeError, read_recipe

TEXT = """
output: out/a
model: {path: small}
objective: {type: sft}
data:
  train: {files: [a.jsonl]}
schedule: {steps: 60}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    return str(path)


def problems(file: str, *overrides: str) -> list[str]:
    with pytest.raises(RunError) as caught:
        read_recipe(file, overrides)
    return caught.value.problems


def test_a_recipe_and_the_folder_of_its_paths(file: str, tmp_path: Path) -> None:
    recipe, folder = read_recipe(file)
    assert folder == tmp_path
    assert isinstance(recipe.optimizer, AdamW)  # the default type of a section that names none
    assert recipe.optimizer.lr == 1e-3
    assert isinstance(recipe.tuning, Lora)


def test_overrides_have_the_types_of_yaml(file: str) -> None:
    recipe, _ = read_recipe(
        file,
        [
            "optimizer.lr=5e-4",
            "data.train.files=[b.jsonl, c.jsonl]",
            "tuning={type: full}",
            "schedule.steps=3",
            "seed=7",
        ],
    )
    assert isinstance(recipe.optimizer, AdamW)
    assert recipe.optimizer.lr == 5e-4
    assert recipe.data["train"].files == ("b.jsonl", "c.jsonl")
    assert isinstance(recipe.tuning, Full)
    assert (recipe.schedule.steps, recipe.seed) == (3, 7)


def test_later_overrides_win_and_new_sections_can_be_made(file: str) -> None:
    recipe, _ = read_recipe(file, ["seed=1", "seed=2", "checkpoints.every=5", "tuning.r=4", "members.large.path=large"])
    assert recipe.seed == 2
    assert recipe.checkpoints.every == 5
    assert isinstance(recipe.tuning, Lora)
    assert recipe.tuning.r == 4
    assert recipe.members["large"].path == "large"


@given(st.recursive(st.integers() | st.booleans() | st.text("abc", min_size=1), st.lists, max_leaves=4))
def test_any_value_arrives_as_written(value: Any) -> None:
    tree: dict[str, Any] = {}
    text = yaml.safe_dump(value, default_flow_style=True)
    assert override(tree, [f"a.b={text}"]) == []
    assert tree == {"a": {"b": value}}


def test_all_mistakes_are_told_at_once(file: str) -> None:
    told = problems(
        file,
        "data.train.fils=[a]",
        "tuning.type=loraa",
        "optimizer.lr=-1",
        "batch.packing=fitt",
        "foo",
        "schedule.epochs=2",
    )
    assert told == [
        "'foo': overrides are written dotted.name=value",
        "tuning.type: 'loraa' is unknown. Did you mean 'lora'? Allowed: lora, full, half, soft_prompt",
        "data.train.fils: unknown field. Did you mean 'files'? Allowed: files, format, loss, span_weights, template, "
        "rows, limit, shuffle",
        "batch.packing: 'fitt' is not allowed. Did you mean 'fit'? Allowed: none, fit, wrap",
        "optimizer.lr: must be greater than 0, got -1",
        "schedule: give steps or epochs, not both; schedule={epochs: 3} in an override replaces both",
    ]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.pth=x", "model.pth: unknown field. Did you mean 'path'? Allowed: "),
        ("model={fresh: {model_type: llama}}", "model.tokenizer: required"),
        ("model=3", "model: must be an object, got 3"),
        ("tuning.rr=3", "tuning.rr: unknown field. Did you mean 'r'? Allowed: "),
        ("objective.typ=x", "objective.typ: unknown field. Did you mean 'type'? Allowed: "),
        ("objective.type=sftt", "objective.type: 'sftt' is unknown. Did you mean 'sft'? Allowed: "),
        ("seed.x=1", "seed: must be a valid integer, got {'x': 1}"),
        ("schedule.steps=1.5", "schedule.steps: must be a valid integer, got 1.5"),
        ("optimizer.lr=high", "optimizer.lr: must be a valid number, got 'high'"),
        ("optimizer.lr=1e400", "optimizer.lr: must be a finite number, got inf"),
        ("batch.truncate=maybe", "batch.truncate: must be true or false, got 'maybe'"),
        ("data.train.files=3", "data.train.files: must be a valid list, got 3"),
        ("data.train.files=[]", "data.train.files: must hold at least 1 entry, got []"),
        ("data=x", "data: must be an object, got 'x'"),
        ("output=[1]", "output: must be a path, got [1]"),
        ("schedule={steps: 2, epochs: 3}", "schedule: give steps or epochs, not both"),
        ("seed=[1", "seed: '[1' is not readable as YAML"),
    ],
)
def test_a_mistake_names_field_value_and_nearest(file: str, override: str, told: str) -> None:
    (problem,) = problems(file, override)
    assert problem.startswith(told)


def test_one_file_needs_no_list(file: str) -> None:
    recipe, _ = read_recipe(file, ["data.train.files=mine.jsonl"])
    assert recipe.data["train"].files == ("mine.jsonl",)


def test_a_path_through_a_value_is_refused(file: str) -> None:
    assert "seed.x: 'x' cannot be set in a value without names" in problems(file, "seed=1", "seed.x=2")


def test_what_is_sound_is_kept_for_further_checks(file: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, ["data.train.fils=[a]", "optimizer.lr=-1"])
    assert caught.value.rest is not None
    recipe, _ = caught.value.rest
    assert recipe.data["train"].files == ("a.jsonl",)
    with pytest.raises(RecipeError) as caught:
        read_recipe(file, ["data.train.files=[]"])
    assert caught.value.rest is None


def test_packaged_recipes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small-chat.yaml").write_text(TEXT)
    monkeypatch.setattr(recipe_file, "PACKAGED", tmp_path)
    recipe, folder = read_recipe("small-chat", ["seed=4"])
    assert (recipe.seed, folder) == (4, Path.cwd())
    assert problems("smal-chat") == [
        "recipe 'smal-chat': neither a file nor a packaged recipe. Did you mean 'small-chat'? Allowed: small-chat"
    ]
    assert len(problems("smal-chat", "schedule.steps=3")) == 1  # not what the overrides alone lack to be a recipe
    assert len(problems("smal-chat", "schedule.steps")) == 2


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "seed: 1\nseed: 2"])
def test_unreadable_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (problem,) = problems(str(path))
    assert problem.startswith(str(path))


def test_a_written_recipe_reads_back(file: str, tmp_path: Path) -> None:
    recipe, _ = read_recipe(file, ["members.large={path: large, layers: 2}", "optimizer.clip=1"])
    again = tmp_path / "again.yaml"
    again.write_text(recipe_yaml(recipe))
    assert read_recipe(str(again))[0] == recipe
