"""Tables in a terminal: every number is whole, however narrow it is."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from motet.evaluation.bench import Row
from motet.evaluation.report import columns, shown, tables

ROWS: dict[str, Row] = {
    name: {f"measure number {i}": 10.0**-i / 3 for i in range(12)} | {"ROUGE-L": None}
    for name in ("tuned", "a subject whose name is longer than most of them are, filter=0.01 weight=0.95 (Pareto)")
}


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_numbers_are_whole_and_lines_no_longer_than_the_screen(width: int) -> None:
    console = Console(file=StringIO(), width=width)
    parts = tables("title", ROWS, width)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    for value in ROWS["tuned"].values():
        assert text.count(f" {shown(value)} ") >= 2
    assert all(len(line) <= width and line.rstrip()[-1:] not in "…" for line in text.splitlines() if line.strip())
    assert [str(column.header) for part in parts for column in part.columns[1:]] == columns(ROWS)
    assert (len(parts) == 1) == (width == 400)
