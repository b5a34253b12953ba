"""Reading questions and texts: JSON lines or a JSON list, in the formats that TOFU and MUSE publish."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from motet.evaluation.settings import RecipeError, nearest


class Item(BaseModel):
    """A question with its right answer, and what TOFU's files and the demo world's have beside it.

    `perturbed_answer`: wrong answers in the words of the paraphrased one. `value`: the part of the answer that is
    the fact. `statement`: the fact as a sentence. Further columns are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: str
    answer: str
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answer: tuple[str, ...] = ()
    translated_question: str | None = None
    value: str | None = None
    statement: str | None = None

    @property
    def paraphrase(self) -> str:
        """The right answer in other words, itself where there are none (TOFU's real authors and world facts)."""
        return self.paraphrased_answer or self.answer


class Excerpt(BaseModel):
    """A line of MUSE's `verbmem`: the beginning of a text, and how it goes on (`gt`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    gt: str


class Text(BaseModel):
    """A line with a text of its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str


M = TypeVar("M", bound=BaseModel)


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """Questions and answers.

    Raises:
        RecipeError: the file is missing or empty, and all rows that are wrong, by file and line.
    """
    return _read(path, Item, limit)


def read_excerpts(path: Path, limit: int | None = None) -> list[Excerpt]:
    """MUSE's `verbmem`; raises as `read_items`."""
    return _read(path, Excerpt, limit)


def read_texts(path: Path, limit: int | None = None) -> list[str]:
    """Texts: a JSON list of strings (MUSE's `privleak`), or rows with a `text`; raises as `read_items`."""
    return [row.text for row in _read(path, Text, limit)]


def missing(path: Path) -> str:
    """A sentence about a file that does not exist."""
    beside = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
    return f"{path} does not exist.{nearest(path.name, beside)}"


def _read(path: Path, kind: type[M], limit: int | None) -> list[M]:
    rows: list[M] = []
    problems: list[str] = []
    for place, row in _rows(path):
        try:
            rows.append(kind.model_validate({"text": row} if isinstance(row, str) else row))
        except ValidationError as error:
            problems += [f"{place}: {'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}." for e in error.errors()]
    if not rows and not problems:
        problems = [f"{path}: no rows."]
    if problems:
        raise RecipeError(problems)
    return rows[:limit]


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, decoded row)"""
    if not path.is_file():
        raise RecipeError([missing(path)])
    text = path.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            yield from ((f"{path}: row {i}", row) for i, row in enumerate(cast("list[Any]", json.loads(text)), 1))
        else:
            for i, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    yield f"{path}:{i}", json.loads(line)
    except json.JSONDecodeError as error:
        raise RecipeError([f"{path}: no JSON: {error}."]) from error
