"""The rows of files as they stand, and with another answer in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from motet.training.data.files import RecordSource, Row, find_files, read_rows
from motet.training.data.json_text import is_list, lines
from motet.training.data.records import Record, Text
from motet.training.recipe import Dataset

CHAT_COLUMNS = {"messages": "content", "conversations": "value", "completion": "content"}


def raw_rows(spec: Dataset, root: Path) -> dict[RecordSource, dict[str, Any]]:
    """Every readable row by its place."""
    files, _ = find_files(spec.files, root)
    return {row.source: row.values for path in files for row in read_rows(path) if isinstance(row, Row)}


def text_of(record: Record) -> str:
    """All that a record says, for comparisons: prompts and answers, one below the other."""
    parts = record.sides.values()
    texts = [[part.text] if isinstance(part, Text) else [m.content for m in part.messages] for part in parts]
    return "\n".join(text for lines in texts for text in lines)


def with_answer(values: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """A row with another answer; `spans`, which lay on the old one, are left out."""
    row = {column: value for column, value in values.items() if column != "spans"}
    column = next(name for name in ("completion", "output", "messages", "conversations") if row.get(name) is not None)
    held = row[column]
    row[column] = [*held[:-1], {**held[-1], CHAT_COLUMNS[column]: answer}] if is_list(held) else answer
    return row


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line. Raises FileExistsError: nothing is written over."""
    with path.open("x", encoding="utf-8") as file:
        file.writelines(lines(rows))
