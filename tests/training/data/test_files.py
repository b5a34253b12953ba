"""Every reader gives rows with their places, and says of every bad row what is wrong."""

from __future__ import annotations

import gzip
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


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
def test_the_content_says_whether_a_file_is_a_list_or_lines(tmp_path: Path, name: str) -> None:
    """datasets' `to_json` and TOFU's own files are lines in a `.json`."""
    path = tmp_path / name
    write = gzip.open if name.endswith(".gz") else open
    for written, lines in (
        (json.dumps(ROWS), [1, 1]),
        (json.dumps(ROWS, indent=0), [2, 5]),
        ("\ufeff \n[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n", [3, 4]),
        ("\r\n".join(map(json.dumps, ROWS)), [1, 2]),
        ("\n\n \n".join(map(json.dumps, ROWS)), [1, 4]),
    ):
        with write(path, "wb") as file:
            file.write(written.encode())
        assert rows_of(path) == list(zip(lines, ROWS, strict=True))
        assert len({row.source for row in read_rows(path) if isinstance(row, Row)}) == 2


def test_line_and_paragraph_separators_stand_in_texts(tmp_path: Path) -> None:
    """Python's `splitlines` would cut rows at them."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + '\n{"text": "next"}\n', "utf-8")
    assert rows_of(path) == [(1, {"text": text}), (2, {"text": "next"})]


def test_byte_order_marks_of_joined_files(tmp_path: Path) -> None:
    """`cat` of two files that begin with one."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n\xef\xbb\xbf\n')
    assert rows_of(path) == [(1, {"text": "a"}), (2, {"text": "b"})]


def test_both_halves_of_a_surrogate_pair_are_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00 \\\\ud83d"}')
    assert rows_of(path) == [(1, {"text": "😀 \\ud83d"})]


FAULTS = {
    '{"text": "\\ud83d"}': r"text: \ud83d is half of a surrogate pair",
    '{"m": [{"content": "a\\uDE00"}]}': r"m[1].content: \ude00 is half of a surrogate pair",
    '{"\\ud800": 1}': r"text: \ud800 is half of a surrogate pair",
    '{"text": "a", "text": "b"}': "'text' is given twice in one object",
    '{"score": NaN}': "NaN is no JSON",
    '{"score": -Infinity}': "-Infinity is no JSON",
    '{"n": ' + "9" * 5000 + "}": "invalid JSON: Exceeds the limit",
    '{"deep": ' + "[" * 100_000 + "]" * 100_000 + "}": "invalid JSON: nested too deeply",
}


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_json_has_not_is_refused_by_file_and_line(tmp_path: Path, fault: str, name: str) -> None:
    path = tmp_path / name
    if name == "lines.jsonl":
        path.write_text('{"text": "fine"}\n' + fault + '\n{"text": "fine"}\n')
        place = ":2: "
    else:
        path.write_text('[{"text": "fine"},\n' + fault + ',\n{"text": "fine"}]')
        place = ":2 (row 2): "
    (problem,) = problems_of(path)
    if "nested" in problem and name == "list.json":
        return  # where such an element ends cannot be told: the file is named
    assert problem.startswith(place + FAULTS[fault].replace("\\\\", "\\"))
    assert sum(isinstance(row, Row) for row in read_rows(path)) == 2


def test_an_object_over_several_lines_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}, indent=2))
    (problem,) = problems_of(path)
    assert "got one object over several lines; its field 'data' holds a list" in problem
    path.write_text('{\n"text": 1\n')
    assert problems_of(path)[0].startswith(":1: invalid JSON")


def test_files_that_are_no_utf8_or_cut_off(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv"):
        (tmp_path / name).write_text('{"text": "One."}', "utf-16")
        assert problems_of(tmp_path / name) == [": is UTF-16; save it as UTF-8"]
    whole = gzip.compress(json.dumps(ROWS[0]).encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.jsonl.gz").write_bytes(b"{}")
    assert problems_of(tmp_path / "cut.jsonl.gz")[0].startswith(": cannot be read: ")
    assert problems_of(tmp_path / "none.jsonl.gz")[0].startswith(": cannot be read: Not a gzipped file")


def test_csv_takes_long_cells_and_refuses_doubled_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert rows_of(tmp_path / "a.csv") == [(2, {"text": "a" * 200_000})]
    (tmp_path / "b.csv").write_text("text,text\na,b\n")
    assert problems_of(tmp_path / "b.csv") == [":1: the head names text twice"]


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


def test_parquet_adds_nothing_to_tool_calls(tmp_path: Path) -> None:
    """Arrow fills every object of a column up with the others' fields; a null in a list stands for itself."""
    path = tmp_path / "a.parquet"
    add: dict[str, Any] = {"name": "add", "arguments": {"a": 1, "of": [{"x": 1}, {"y": None}]}}
    calls: list[list[dict[str, Any]]] = [[add], [{"name": "now", "arguments": {}}]]
    rows = [{"tool_calls": call, "marks": [1, None], "text": None} for call in calls]
    parquet.write_table(cast(Any, arrow.Table).from_pylist(rows), path)
    add["arguments"] = {"a": 1, "of": [{"x": 1}, {}]}
    assert rows_of(path) == [(number, {**row, "tool_calls": calls[number - 1]}) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": 1\n[1]\n\xff\n', [":1: invalid JSON", ":2: expected an object", ":3: not UTF-8"]),
        ("a.json", b"[1,\n{]", [":1 (row 1): expected an object", ":2: invalid JSON"]),
        ("a.json", b"[1]", [":1 (row 1): expected an object with columns, got int"]),
        ("a.json", b"[{}\n{}]", [":2: invalid JSON: Expecting ',' delimiter"]),
        ("a.json", b"[{}]\n{}", [":2: invalid JSON: Extra data"]),
        ("a.json", b"[{}", [":1: invalid JSON: Expecting ',' delimiter"]),
        ("a.json", b"[\n\xff]", [":2: not UTF-8"]),
        ("a.csv", b"a,b\n1\n2,3,4\n5,6\n", [":2: 1 cells, but the head names 2", ":3: 3 cells"]),
        ("a.csv", b"spans\n[\n", [":2: spans: invalid JSON: Expecting value (column 2), in the cell"]),
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
    assert problems[0].endswith("Did you mean 'forget.jsonl'?")
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
