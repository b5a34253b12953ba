"""Questions and texts, in the formats that TOFU and MUSE publish, from the files that training reads too."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from motet.evaluation.settings import RecipeError
from motet.settings import nearest
from motet.training.data.files import Bad, is_read, read_values, unreadable


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
    if not path.is_file():
        raise RecipeError([missing(path)])
    if not is_read(path):
        raise RecipeError([f"{unreadable(path)}."])
    rows: list[M] = []
    problems: list[str] = []
    for entry in islice(read_values(path), limit):
        if isinstance(entry, Bad):
            problems.append(f"{entry}.")
            continue
        try:
            rows.append(kind.model_validate({"text": entry.value} if isinstance(entry.value, str) else entry.value))
        except ValidationError as error:
            problems += [
                f"{entry.source}: {'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}." for e in error.errors()
            ]
    if not rows and not problems:
        problems = [f"{path}: no rows."]
    if problems:
        raise RecipeError(problems)
    return rows
