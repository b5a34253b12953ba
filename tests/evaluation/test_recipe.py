"""Recipes: shipped ones are sound, wrong ones are refused with everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from motet.evaluation.recipe import PACKAGED, Sweep, find_recipe, label, packaged_recipes, read_recipe, varied
from motet.evaluation.settings import RecipeError
from motet.evaluation.subject import Subject

ROOT = Path(__file__).parents[2]
GOOD = """\
output: out
subjects: {base: large, tuned: {model: large-chat}}
tasks:
  - {type: gap_closed, data: d.jsonl, base: base, tuned: tuned}
"""


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as refused:
        read_recipe(file, overrides)
    return refused.value.problems


@pytest.mark.parametrize("file", sorted(PACKAGED.rglob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_read_and_name_their_own_command(file: Path) -> None:
    recipe = read_recipe(file)
    command = f"# motet eval {'sweep ' if recipe.sweep else ''}{file.relative_to(ROOT)}"
    assert file.read_text().splitlines()[0] == command


def test_packaged_recipes_are_found_by_name(tmp_path: Path) -> None:
    assert find_recipe(Path("tofu")) == packaged_recipes()["tofu"]
    own = tmp_path / "own.yaml"
    own.touch()
    assert find_recipe(own) == own
    with pytest.raises(RecipeError, match="Did you mean 'tofu'"):
        find_recipe(Path("tofoo"))


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(GOOD)
    recipe = read_recipe(
        file, ["limit=20", "tasks.0.max_tokens=7", "subjects.tuned.model=small", "api.server=http://x"]
    )
    assert (recipe.limit, recipe.tasks[0].type, recipe.api.server) == (20, "gap_closed", "http://x")
    assert recipe.tasks[0].model_dump()["max_tokens"] == 7


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(GOOD)
    subject = read_recipe(file, ["subjects.base={model: large, composition: {weight: 1e-3}}"]).subjects["base"]
    assert subject.composition == {"weight": 0.001}


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, "limits=3", "tasks.0.bass=x", "concurrency=0", "subjects.tuned.modl=x")
    assert len(found) == 4
    assert any(p.startswith("limits: unknown field. Did you mean 'limit'? Allowed: name, root") for p in found)
    assert any(
        "bass: unknown field. Did you mean 'base'? Allowed: type, data, base, tuned, max_tokens." in p for p in found
    )
    assert any(p.startswith("concurrency: ") for p in found)
    assert any(p.startswith("subjects.tuned.modl: ") for p in found)


def test_unknown_subjects_are_told_at_once_with_the_nearest(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, "tasks.0.base=bas", "subjects.prompted={model: large, examples: 2}")
    assert found == [
        "tasks.0.base: unknown subject 'bas'. Did you mean 'base'? Subjects: base, tuned, prompted.",
        "subjects.prompted.examples: the recipe names no file of 'examples'.",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limit", "'limit': overrides are written dotted.name=value."),
        ("output.deep=1", "output.deep: 'deep' cannot be set in a value without names."),
        ("output.very.deep=1", "output.very.deep: 'very' is looked for in a value without names."),
        ("tasks.3.base=x", "tasks.3.base: '3' is no index of a list of 1."),
    ],
)
def test_overrides_that_lead_nowhere(tmp_path: Path, override: str, said: str) -> None:
    assert problems(tmp_path, GOOD, override) == [said]


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert "not readable as YAML" in problems(tmp_path, "a: [")[0]
    assert "a mapping" in problems(tmp_path, "- a")[0]
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_a_running_server_brings_its_own_models(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GOOD, "api={server: http://x, models: m.yaml}")
    assert problem.startswith("api: a running server has its own models: models cannot be given")


def test_subjects_need_something_that_answers(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GOOD, "subjects.empty={examples: 0}")
    assert problem == "subjects.empty: give a model, a composition, or both."


def test_sweeps_need_a_composition_to_vary(tmp_path: Path) -> None:
    sweep = "sweep={subject: base, over: {weight: [1, 2]}, front: [{measure: a}, {measure: b}]}"
    (problem,) = problems(tmp_path, GOOD, sweep)
    assert problem == "sweep.subject: 'base' has no composition of its own to vary: write it in the recipe."


def test_points_are_every_combination_with_the_last_name_fastest() -> None:
    sweep = Sweep.model_validate(
        {"subject": "s", "over": {"filter": [None, 0.1], "weight": [1, 2]}, "front": [{"measure": "a"}] * 2}
    )
    assert [label("s", point) for point in sweep.points()] == [
        "s filter=None weight=1",
        "s filter=None weight=2",
        "s filter=0.1 weight=1",
        "s filter=0.1 weight=2",
    ]


def test_points_vary_nested_fields_and_leave_the_subject_alone() -> None:
    subject = Subject(composition={"strategy": "eft", "traits": [{"beta": 1.0}, {"beta": 1.0}]})
    moved = varied(subject, {"traits.1.beta": 2.0, "filter": 0.5})
    assert moved.composition == {"strategy": "eft", "traits": [{"beta": 1.0}, {"beta": 2.0}], "filter": 0.5}
    assert subject.composition == {"strategy": "eft", "traits": [{"beta": 1.0}, {"beta": 1.0}]}
