"""What a task works with, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motet.evaluation.asking import Api, SubjectReply
from motet.evaluation.data import Item, read_items
from motet.evaluation.subject import Pair, Subject

Row = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Findings:
    """Measures per subject (columns are the same for all), and one record per subject and item."""

    measures: Mapping[str, Row]
    items: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Bench:
    """The API, the recipe's subjects, its examples for prompt-only subjects, the folder of data, and the number of
    rows that are read of each file at most."""

    api: Api
    subjects: Mapping[str, Subject]
    root: Path
    limit: int | None = None
    shots: Sequence[Pair] = field(default_factory=tuple)

    def items(self, name: str) -> list[Item]:
        """The questions of a file of `root`."""
        return read_items(self.root / name, self.limit)

    async def ask(
        self, subject: Subject, questions: Sequence[str], *, max_tokens: int, trace: bool = False
    ) -> list[SubjectReply]:
        """Greedy replies in order."""
        return await self.api.together(
            [
                self.api.chat(subject, subject.messages(question, self.shots), max_tokens=max_tokens, trace=trace)
                for question in questions
            ]
        )

    async def score(
        self, subject: Subject, asked: Sequence[tuple[str, Sequence[str]]]
    ) -> list[list[tuple[float, ...]]]:
        """Token log-probs of each of the answers to each question."""
        return await self.api.together(
            [self.api.score(subject, subject.messages(question, self.shots), answers) for question, answers in asked]
        )
