"""The command line: a recipe's name is enough, and problems come on standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from motet.cli import app

RUNNER = CliRunner()


def test_a_recipe_is_run_without_saying_run(tmp_path: Path) -> None:
    """Both ways reach the same refusal."""
    for command in (["eval", "gap_closed", "limits=1"], ["eval", "run", "gap_closed", "limits=1"]):
        result = RUNNER.invoke(app, command)
        assert result.exit_code == 1
        assert "error: limits: unknown field. Did you mean 'limit'?" in result.stderr


def test_sweep_without_a_sweep_and_recipes_that_do_not_exist() -> None:
    result = RUNNER.invoke(app, ["eval", "sweep", "gap_closed"])
    assert (result.exit_code, result.stderr) == (
        1,
        "error: sweep: required: what is varied, `motet eval RECIPE` runs a recipe without it.\n",
    )
    assert "neither a file nor a packaged recipe" in RUNNER.invoke(app, ["eval", "none.yaml"]).stderr


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    recipe, data = tmp_path / "r.yaml", tmp_path / "d.jsonl"
    data.write_text('{"question": "q", "answer": "a"}\n')
    recipe.write_text(
        f"output: {tmp_path / 'out'}\napi: {{server: 'http://127.0.0.1:9'}}\nsubjects: {{a: m}}\n"
        "tasks: [{type: gap_closed, data: d.jsonl, base: a, tuned: a}]\n"
    )
    result = RUNNER.invoke(app, ["eval", str(recipe)])
    assert result.exit_code == 1
    assert "error: the server does not answer:" in result.stderr


@pytest.mark.parametrize("output", ["file", "file/out"])
@pytest.mark.parametrize("command", [["eval"], ["eval", "sweep"]])
def test_an_output_that_cannot_be_written(tmp_path: Path, output: str, command: list[str]) -> None:
    """Told before anything is asked: here there is no server to ask."""
    (tmp_path / "file").touch()
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"output: {tmp_path / output}\napi: {{server: 'http://127.0.0.1:9'}}\nsubjects: {{a: m}}\n"
        "tasks: [{type: gap_closed, data: d.jsonl, base: a, tuned: a}]\n"
    )
    result = RUNNER.invoke(app, [*command, str(recipe)])
    assert (result.exit_code, result.stderr) == (1, f"error: output: {tmp_path / 'file'} is a file\n")


def test_merge_needs_weights(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["eval", "merge", str(tmp_path), "--base", "a", "--add", "b"])
    assert result.exit_code == 1
    assert "error: --add b: write FOLDER=WEIGHT." in result.stderr


def test_recipes_are_read_without_torch() -> None:
    script = (
        "import sys; from motet.evaluation.recipe import packaged_recipes, read_recipe\n"
        "[read_recipe(file) for file in packaged_recipes().values()]\n"
        "assert not {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
