"""Published formats are read; wrong rows are all told, by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from motet.evaluation.data import read_excerpts, read_items, read_texts
from motet.evaluation.settings import RecipeError


def test_tofu_rows_in_both_published_forms(tmp_path: Path) -> None:
    """The hub's JSON lines, and the repository's JSON lists; TOFU's real authors have no paraphrase."""
    row = {"question": "q", "answer": "a", "perturbed_answer": ["x", "y"], "paraphrased_answer": "p", "option1": "x"}
    lines, listed = tmp_path / "forget10_perturbed.jsonl", tmp_path / "real_authors_perturbed.json"
    lines.write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    listed.write_text(json.dumps([{"question": "q", "answer": "a", "perturbed_answer": ["x"]}]))
    assert [item.paraphrase for item in read_items(lines)] == ["p", "p"]
    assert [item.paraphrase for item in read_items(listed)] == ["a"]
    assert len(read_items(lines, 1)) == 1


def test_muse_files(tmp_path: Path) -> None:
    verbatim, texts, rows = tmp_path / "forget.json", tmp_path / "holdout.json", tmp_path / "rows.jsonl"
    verbatim.write_text(json.dumps([{"prompt": "once", "gt": "upon"}]))
    texts.write_text(json.dumps(["one", "two"]))
    rows.write_text('{"text": "three", "id": 3}\n')
    assert [(e.prompt, e.gt) for e in read_excerpts(verbatim)] == [("once", "upon")]
    assert read_texts(texts) == ["one", "two"]
    assert read_texts(rows) == ["three"]


def test_all_wrong_rows_are_told(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"question": "q"}\n{"question": "q", "answer": "a"}\n{"question": 3, "answer": "a"}\n')
    with pytest.raises(RecipeError) as refused:
        read_items(file)
    assert refused.value.problems == [
        f"{file}:1: answer: Field required.",
        f"{file}:3: question: Input should be a valid string.",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "forget.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(RecipeError, match=r"forget.jsonl: no rows."):
        read_items(tmp_path / "forget.jsonl")
    with pytest.raises(RecipeError, match=r"broken.jsonl:1: invalid JSON"):
        read_items(tmp_path / "broken.jsonl")
    with pytest.raises(RecipeError, match=r"forgot.jsonl does not exist. Did you mean 'forget.jsonl'\?"):
        read_items(tmp_path / "forgot.jsonl")


def test_files_are_read_as_those_of_training(tmp_path: Path) -> None:
    """A paragraph separator ends no line, a byte order mark is none of a row's, half a surrogate pair has its place."""
    row = {"question": "q\u2029", "answer": "a"}
    (tmp_path / "d.json").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(row), "utf-8")
    assert [item.question for item in read_items(tmp_path / "d.json")] == ["q\u2029"] * 2
    (tmp_path / "d.csv").write_text("question,answer\nq,a\n")
    assert [item.answer for item in read_items(tmp_path / "d.csv")] == ["a"]
    (tmp_path / "half.jsonl").write_text('\n{"question": "\\ud83d", "answer": "a"}\n')
    with pytest.raises(RecipeError, match=r"half.jsonl:2: question: \\ud83d is half of a surrogate pair"):
        read_items(tmp_path / "half.jsonl")
    (tmp_path / "d.txt").touch()
    with pytest.raises(RecipeError, match=r"\.txt is not read; allowed: \.jsonl"):
        read_items(tmp_path / "d.txt")
