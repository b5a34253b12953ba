"""Every reader gives rows with their places, and says of every bad row what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from motet.training.data.errors import DataError
from motet.training.data.files import Bad, Row, find_files, read_rows
from tests.training.data.cases import load, write_jsonl

ROWS = [{"text": "One."}, {"text": "Two, “two”."}]


def rows_of(path: Path) -> list[tuple[int, object]]:
    """(line, values) of each row; fails on a bad one."""
    found: list[tuple[int, object]] = []
    for row in read_rows(path):
        assert isinstance(row, Row), row
        found.append((row.source.line, row.values))
    return found


def problems_of(path: Path) -> list[str]:
    return [str(row).removeprefix(str(path)) for row in read_rows(path) if isinstance(row, Bad)]


def test_jsonl_counts_lines_and_skips_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(ROWS[0])}\n\n{json.dumps(ROWS[1])}".encode())
    assert rows_of(path) == [(1, ROWS[0]), (3, ROWS[1])]


def test_json_is_a_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    assert rows_of(path) == [(1, ROWS[0]), (2, ROWS[1])]
    path.write_text('{"text": "One."}')
    assert "expected a list of objects, got dict" in problems_of(path)[0]


def test_csv_names_the_line_on_which_a_row_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,spans\n"One\nline",\nTwo,"[[0, 1, 2.0]]"\n')
    assert rows_of(path) == [(2, {"text": "One\nline", "spans": None}), (4, {"text": "Two", "spans": [[0, 1, 2.0]]})]


def test_parquet_counts_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [[{"role": "user", "content": "Hi"}], None]
    table = cast(Any, arrow.table({"text": ["One.", None], "messages": messages}))
    parquet.write_table(table, path)
    assert rows_of(path) == [(1, {"text": "One.", "messages": messages[0]}), (2, {"text": None, "messages": None})]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": 1\n[1]\n\xff\n', [":1: invalid JSON", ":2: expected an object", ":3: not UTF-8"]),
        ("a.json", b"[1,\n{]", [":2: invalid JSON"]),
        ("a.json", b"[1]", [":1: expected an object with columns, got int"]),
        ("a.csv", b"a,b\n1\n2,3,4\n5,6\n", [":2: 1 cells, but the head names 2", ":3: 3 cells"]),
        ("a.csv", b"spans\n[\n", [":2: spans: invalid JSON in the cell"]),
        ("a.csv", b"text\n\xff\n", [": cannot be read: 'utf-8'"]),
        ("a.parquet", b"nothing of the kind", [": cannot be read as Parquet"]),
    ],
)
def test_bad_rows_are_all_named(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    problems = problems_of(tmp_path / name)
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


def test_globs_are_sorted_and_every_file_is_read_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / name, ROWS)
    found, problems = find_files(["b.jsonl", "*.jsonl", str(tmp_path / "**/c.jsonl")], tmp_path)
    assert [path.name for path in found] == ["b.jsonl", "a.jsonl", "c.jsonl"]
    assert not problems


def test_missing_files_are_named_with_the_nearest_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "forget.jsonl", ROWS)
    (tmp_path / "notes.txt").touch()
    _, problems = find_files(["forgot.jsonl", "*.csv", "notes.txt"], tmp_path)
    assert "forgot.jsonl" in problems[0]
    assert problems[0].endswith("nearest: forget.jsonl")
    assert problems[1] == "'*.csv' matches no file"
    assert "allowed: .jsonl, .json, .csv, .parquet" in problems[2]


def test_all_problems_of_all_files_are_raised_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "fine"}\nnope\n')
    (tmp_path / "b.jsonl").write_text('{"text": 3}\n{"txt": "x"}\n')
    with pytest.raises(DataError) as caught:
        load(tmp_path, None, files=["*.jsonl"])
    assert [problem.removeprefix(f"{tmp_path}/").split(": ")[0] for problem in caught.value.problems] == [
        "a.jsonl:1", "a.jsonl:3", "b.jsonl:1", "b.jsonl:2",
    ]  # fmt: skip


def test_no_rows_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train\.files: no rows in"):
        load(tmp_path, [])


def test_limit_reads_the_first_rows_of_all_files_together(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    dataset = load(tmp_path, None, files=["a.jsonl", "b.jsonl"], limit=3)
    assert [str(record.source)[-9:] for record in dataset.records] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]
