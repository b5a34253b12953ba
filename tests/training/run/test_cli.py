"""`motet train` as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from motet.cli import app
from motet.training.run.dry_run import dry_run
from motet.training.run.preparation import prepare
from tests.training.run.workshop import recipe

RUN = CliRunner()


@pytest.fixture
def file(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"root: {root}\noutput: {tmp_path / 'run'}\nmodel: {{path: base}}\nobjective: {{type: sft}}\n"
        "data: {train: {files: [train.jsonl]}}\nschedule: {steps: 8}\nbatch: {rows: 4}\nprecision: float32\n"
    )
    return path


def invoke(*arguments: object) -> Result:
    return RUN.invoke(app, ["train", *map(str, arguments)])


def test_help_imports_no_torch() -> None:
    code = "import sys; from motet.cli import app; app(['train', '--help'], standalone_mode=False); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--dry-run" in result.stdout
    assert "typer" in result.stdout.split()
    assert not {"torch", "transformers", "peft"} & set(result.stdout.split())


def test_a_run(file: Path, tmp_path: Path) -> None:
    result = invoke(file, "tuning.r=2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "run")
    assert "run: 8/8 steps, loss " in result.stderr
    assert "tokens/s" in result.stderr
    assert (tmp_path / "run" / "expert.json").is_file()
    again = invoke(file, "tuning.r=2")
    assert again.exit_code == 1
    assert "--restart" in again.stderr


@pytest.mark.parametrize(("written", "seed"), [("demo", 0), ("demo:3", 3)])
def test_the_demo_family_is_a_root(
    file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, written: str, seed: int
) -> None:
    from motet.demo import family

    monkeypatch.setattr(family, "build_family", {seed: root}.__getitem__)
    result = invoke(file, f"root={written}", "--dry-run")
    assert result.exit_code == 0, result.stderr
    (file.parent / written).mkdir()
    beside = invoke(file, f"root={written}", "--dry-run")
    assert "demo" in beside.stderr, "a folder of that name is meant where there is one"
    assert beside.exit_code == 1


def test_a_root_that_is_none(file: Path) -> None:
    result = invoke(file, "root=demo:x", "data.train.fils=[a]")
    assert result.exit_code == 1
    assert "`demo:SEED`" in result.stderr
    assert "data.train.fils" in result.stderr


def test_mistakes_are_lines_and_exit_code_1(file: Path) -> None:
    result = invoke(file, "data.train.fils=[a]", "data.train.files=[none.jsonl]", "model.path=bse")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: data.train.fils: unknown field. Did you mean 'files'? Allowed: files, format, ")
    assert any(line.startswith("error: model.path: ") and line.endswith("Did you mean 'base'?") for line in lines)
    assert any("none.jsonl" in line for line in lines)
    assert len(lines) == 3


def test_contradicting_flags(file: Path) -> None:
    assert invoke(file, "--resume", "--restart").exit_code == 1


def test_a_dry_run_measures_and_writes_nothing(file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = invoke(file, "--dry-run", "schedule={epochs: 3}")
    assert result.exit_code == 0, result.stderr
    for said in (
        "60 documents",
        "counted",
        "3.00 epochs",
        "45, about 0:00",
        "activations",
        "adapter_model.safetensors",
    ):
        assert said in result.stdout, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_preview_shows_records(file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = invoke(file, "--preview", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("train.jsonl:") == 2
    assert "⟦" in result.stdout
    assert invoke(file, "--preview").stdout.count("train.jsonl:") == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_the_counts_of_a_dry_run(root: Path, tmp_path: Path) -> None:
    chosen = recipe(tmp_path / "run", members={"other": {"path": "other"}}, batch={"rows": 4, "accumulate": 2})
    run = dry_run(prepare(chosen, root))
    numbers = run.trained
    assert run.parameters == run.trained
    assert run.memory.gradients == 4 * numbers
    assert 8 * numbers <= run.memory.optimizer <= 8 * numbers + 1024  # two moments, and step counts
    assert run.memory.parameters == 2 * 4 * numbers  # the member too
    assert run.memory.total >= run.memory.parameters + run.memory.gradients + run.memory.optimizer
    assert 0 < run.step_seconds < 60
    (count,) = run.datasets.values()
    assert (count.documents, count.rows, count.rows_per_step) == (60, 60, 4)
    assert count.counted < count.tokens
    assert run.epochs["train"] == pytest.approx(6 * 4 / 60)
