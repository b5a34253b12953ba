"""`motet data`, with a tiny model on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import Result
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from motet.cli.data import app
from motet.training.data.curation.clusters import k_means
from tests.training.data.cases import demo, write_jsonl

ROWS = [
    {"prompt": "Where was Anna Bell born?", "completion": "Anna Bell was born in Townville."},
    {"prompt": "Where was Anna Bell born?", "completion": "anna bell was born in TOWNVILLE"},
    {"prompt": "What does Bob do?", "completion": "Bob works as a baker.", "id": "keep me – ö"},
]


def run(*arguments: object) -> Result:
    return cast(Result, CliRunner().invoke(app, [str(argument) for argument in arguments]))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = demo()
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def test_preview(file: Path, model: Path) -> None:
    result = run("preview", file, "--tokenizer", model, "-n", 1)
    assert result.exit_code == 0, result.output
    assert f"── {file}:1 · " in result.stdout
    assert (
        "⟦<|end|> Visitor: Where was Anna Bell born? Guide:⟧ Anna Bell was born in Townville.<|end|>" in result.stdout
    )


def test_lengths(file: Path, model: Path) -> None:
    result = run("lengths", file, "--tokenizer", model, "--max-length", 20)
    assert result.exit_code == 0, result.output
    assert "3 documents, " in result.stdout
    assert "longer than 20: " in result.stdout


def test_prompts_are_parted_by_what_a_model_makes_of_them(model: Path, tmp_path: Path) -> None:
    """Rows of one prompt stay together, as they are; nothing is lost, nothing is written over."""
    rows = [row | {"id": str(n)} for n in range(4) for row in ROWS]
    file, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "parts"
    asked = ("cluster", file, "--model", model, "--output", out)
    result = run(*asked, "-k", 2)
    assert result.exit_code == 0, result.output
    assert f"8 rows in {out / 'cluster-1.jsonl'}" in result.stdout.replace("\n", "")
    parts = [lines(out / f"cluster-{number}.jsonl") for number in (1, 2)]
    assert parts == [[row for row in rows if ("Anna" in row["prompt"]) == anna] for anna in (True, False)]
    again = run(*asked, "-k", 2)
    assert (again.exit_code, "exists already" in again.output) == (1, True)
    many = run("cluster", file, "--model", model, "--output", tmp_path / "many", "-k", 3)
    assert (many.exit_code, "more than there are unlike prompts" in many.output) == (1, True)
    assert not (tmp_path / "many").exists()
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "One."}, {"text": "Two."}])
    refused = run("cluster", texts, "--model", model, "--output", tmp_path / "texts", "-k", 2)
    assert (refused.exit_code, "only prompts with answers" in refused.output) == (1, True)


def test_k_means_finds_what_was_planted() -> None:
    """Directions around four axes, lengths left aside, in every order of the seed; the largest cluster comes first."""
    generator = torch.Generator().manual_seed(4)
    sizes = (5, 40, 11, 23)
    truth = torch.tensor([n for n, size in enumerate(sizes) for _ in range(size)])[
        torch.randperm(79, generator=generator)
    ]
    points = torch.eye(6, dtype=torch.float64)[truth] + 0.15 * torch.randn(79, 6, generator=generator).double()
    points *= torch.rand(79, 1, generator=generator).double() * 9 + 1
    for seed in range(5):
        found = k_means(points, 4, seed)
        assert found.tolist() == [(3, 0, 2, 1)[int(owner)] for owner in truth]
        assert (found == k_means(points, 4, seed)).all()


def test_duplicates_go_to_the_report_and_the_input_stays(file: Path, tmp_path: Path) -> None:
    before, out = file.read_bytes(), tmp_path / "clean.jsonl"
    result = run("curate", file, "--output", out, "--duplicates", 0.8)
    assert result.exit_code == 0, result.output
    assert "NAME.report.jsonl" in run("curate", "--help").stdout.replace("\n", "")  # the name that follows
    assert lines(out) == [ROWS[0], ROWS[2]]
    assert "keep me – ö" in out.read_text()
    assert lines(tmp_path / "clean.report.jsonl") == [
        {"row": f"{file}:2", "action": "removed", "reason": f"same text as {file}:1", "score": None}
    ]
    assert file.read_bytes() == before
    assert "2 of 3 rows" in result.stdout
    assert run("curate", file, "--output", out, "--duplicates", 0.8).exit_code == 1, "nothing is written over"


def test_models_judge(file: Path, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "clean.jsonl"
    judged = ("--model", model, "--confidence", 1)
    pair = ("--expert", model, "--untuned", model, "--information", 0.5)
    result = run("curate", file, "--output", out, *judged, *pair)
    assert result.exit_code == 0, result.output
    assert not lines(out), "no answer is certain, and no model knows more than itself"
    report = lines(tmp_path / "clean.report.jsonl")
    assert {verdict["score"] for verdict in report if verdict["reason"] == "information below 0.5 nats"} == {0.0}
    confidences = [verdict["score"] for verdict in report if verdict["reason"] == "confidence below 1"]
    assert len(confidences) == 3
    assert all(0 < score < 0.1 for score in confidences)


def test_a_model_corrects(tmp_path: Path, file: Path, model: Path) -> None:
    """An untrained model's answers do not end, so that they replace nothing."""
    out = tmp_path / "clean.jsonl"
    corrected = ("--model", model, "--correct", 0.5, "--answer-tokens", 4)
    result = run("curate", file, "--output", out, *corrected)
    assert result.exit_code == 0, result.output
    assert lines(out) == ROWS
    result = run("curate", file, "--output", tmp_path / "again.jsonl", *corrected, "--information", 0)
    assert "--information would judge the old answers" in result.stderr


def test_options_that_do_not_go_together_are_all_named(file: Path) -> None:
    result = run("curate", file, "--output", file, "--confidence", 0.5, "--expert", "x")
    assert result.exit_code == 1
    problems = result.stderr.splitlines()
    assert [problem.split(": ")[1] for problem in problems] == ["--model", "--information, --expert and --untuned go "
                                                                "together", "--output"]  # fmt: skip


def test_bad_rows_and_missing_models_are_errors_in_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": ""}\nnope\n')
    result = run("curate", tmp_path / "bad.jsonl", "--output", tmp_path / "out.jsonl", "--duplicates", 0.5)
    assert result.exit_code == 1
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        f"{tmp_path}/bad.jsonl:{number}" for number in (1, 2)
    ]
    assert not (tmp_path / "out.jsonl").exists()
    result = run("lengths", tmp_path / "bad.jsonl", "--tokenizer", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    result = run("lengths", tmp_path / "bad.jsonl", "--tokenizer", tmp_path, "--format", "txt")
    assert result.stderr.startswith("error: --format: Input should be 'auto', 'text'")


def test_kinds_are_guessed(tmp_path: Path, model: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Who?", "chosen": "Bob.", "rejected": "Anna."}])
    assert "(pairs, chat form)" in run("preview", pairs, "--tokenizer", model).stdout
    classes = write_jsonl(tmp_path / "classes.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    assert "(classes, plain form)" in run("preview", classes, "--tokenizer", model).stdout
    result = run("curate", pairs, "--output", tmp_path / "o.jsonl", "--model", model, "--confidence", 0.1)
    assert "models judge documents, these are pairs" in result.stderr


def test_help_does_not_import_torch() -> None:
    script = "import sys, motet.cli.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
