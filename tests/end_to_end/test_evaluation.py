"""Every shipped evaluation recipe over the tiny family, in process; and the same figures from a running server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from motet.evaluation.recipe import PACKAGED, Recipe, read_recipe
from motet.evaluation.report import write_results
from motet.evaluation.run import evaluate
from motet.evaluation.settings import RecipeError
from motet.evaluation.sweep import evaluate_sweep
from motet.evaluation.sweep_report import write_sweep

OVERRIDES = ("limit=3", "concurrency=8")
# five examples do not fit the tiny family's 128 tokens
SHORTER = {
    "robustness": ["tasks.0.conditions=[plain, rephrased, mixed, reintroduced]"],
    "leak": ["tasks.0.attacks=[plain, prefix, mixed]", "tasks.0.samples=3", "tasks.0.k=[1, 9]"],
    "gap_closed": ["subjects.prompt-only, 5 examples.examples=1"],
}
RECIPES = sorted(PACKAGED.rglob("*.yaml"))


def read(file: Path, family: Path, output: Path, *overrides: str) -> Recipe:
    return read_recipe(file, [f"root={family}", f"output={output}", *OVERRIDES, *overrides])


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipes_run(file: Path, family: Path, tmp_path: Path) -> None:
    recipe = read(file, family, tmp_path, *SHORTER.get(file.stem, []))
    if recipe.sweep is not None:
        recipe = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"over": {"weight": [0.5, 1.0]}})})
        swept = evaluate_sweep(recipe, file.parent)
        files, results = write_sweep(swept), swept.results
        assert swept.chosen is not None
    else:
        results = evaluate(recipe, file.parent)
        files = write_results(results)
    assert all(written.stat().st_size for written in files)
    assert len(results.findings) == len(recipe.tasks)
    for findings in results.findings.values():
        assert findings.measures
        # models that know next to nothing have no gap and no leak to compare with, and may say nothing
        cells = {cell for row in findings.measures.values() for cell in row.items()}
        silent = {"gap closed", "PrivLeak", "distinct-2", "calibration error", "perplexity under base"}
        assert {name for name, value in cells if value is None} <= silent


def test_a_running_server_gives_the_same_figures(family: Path, url: str, tmp_path: Path) -> None:
    """Also over `/v1/score` of a composition, and with the data of a recipe's own folder."""
    local = evaluate(read(PACKAGED / "tofu.yaml", family, tmp_path / "local"), PACKAGED)
    remote_recipe = read(PACKAGED / "tofu.yaml", family / "evaluation", tmp_path / "remote", f"api={{server: {url}}}")
    remote = evaluate(remote_recipe, PACKAGED)
    assert local.measures.keys() == remote.measures.keys()
    for subject, row in local.measures.items():
        assert remote.measures[subject] == pytest.approx(row, rel=1e-3, abs=1e-6), subject


def test_what_the_server_refuses_is_told_in_its_words(family: Path, url: str, tmp_path: Path) -> None:
    recipe = read(PACKAGED / "eft_grid.yaml", family, tmp_path, f"api={{server: {url}}}", "subjects.large=lage")
    with pytest.raises(RecipeError, match=r"the server refuses a request: .*'lage' does not exist"):
        evaluate(recipe, PACKAGED)


def test_results_name_versions_and_machine(family: Path, tmp_path: Path) -> None:
    write_results(evaluate(read(PACKAGED / "eft_grid.yaml", family, tmp_path), PACKAGED))
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written) == {"recipe", "measures", "seconds", "machine", "versions"}
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(items) == 4 * 3
