"""GSM8K's questions and answers and HumanEval's tasks, as their authors publish them (JSON lines, gzipped or not)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real.number import final_number
from motet.training.data.files import Bad, Row, read_rows

TRAIN, TEST = "gsm8k-train.jsonl", "gsm8k-test-first-half.jsonl"


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` is the reference: a few lines of reasoning, then `#### NUMBER`."""

    question: str
    answer: str


def read_questions(folder: Path, name: str, start: int, count: int) -> list[Question]:
    """Rows `start` to `start + count` of a file.

    Raises:
        SystemExit: no such file, too few rows, or a reference without a number.
    """
    file = next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)
    if file is None:
        raise SystemExit(f"{folder / name} (or {name}.gz) does not exist; --gsm8k FOLDER says where GSM8K lies")
    found = [Question(str(row["question"]), str(row["answer"])) for row in _rows(file, start, count)]
    unnumbered = next((row for row in found if final_number(row.answer) is None), None)
    if unnumbered is not None:
        raise SystemExit(f"{file}: an answer without '#### NUMBER': {unnumbered.answer!r}")
    return found


def read_tasks(file: Path, start: int, count: int) -> list[str]:
    """Of HumanEval's file (Chen et al. 2021, arXiv:2107.03374): functions to be completed, as they are asked in a chat.

    Raises:
        SystemExit: no such file, or too few rows.
    """
    if not file.is_file():
        raise SystemExit(f"{file} does not exist; --humaneval names HumanEval.jsonl.gz")
    return [f"Complete this function:\n```python\n{row['prompt']}```" for row in _rows(file, start, count)]


def _rows(file: Path, start: int, count: int) -> list[dict[str, Any]]:
    rows = list(read_rows(file))
    bad = next((row for row in rows if isinstance(row, Bad)), None)
    if bad is not None:
        raise SystemExit(str(bad))
    if start + count > len(rows):
        raise SystemExit(f"{file} has {len(rows)} rows, {start + count} are asked for")
    return [row.values for row in rows[start : start + count] if isinstance(row, Row)]


def write_training_file(questions: list[Question], file: Path) -> None:
    """The rows as `motet train` reads them."""
    lines = [json.dumps({"prompt": row.question, "completion": row.answer}, ensure_ascii=False) for row in questions]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
