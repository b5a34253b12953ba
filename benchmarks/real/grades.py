"""Replies against references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.real.interval import Interval, bootstrapped, proportion
from benchmarks.real.number import final_number, last_number
from benchmarks.real.questions import Question
from benchmarks.real.replies import Kept


@dataclass(frozen=True, slots=True)
class Grades:
    """Of one system, question by question. `right`: the number behind `####` is the reference's; `formed`: there is
    such a number; `amounts`: the reply's last number, in whatever form, is the reference's; `cut`: the reply did not
    end by itself."""

    right: tuple[bool, ...]
    formed: tuple[bool, ...]
    amounts: tuple[bool, ...]
    cut: tuple[bool, ...]

    @property
    def accuracy(self) -> Interval:
        return proportion(self.right)

    def as_json(self) -> dict[str, Any]:
        shares = {name: sum(getattr(self, name)) / len(self.right) for name in ("formed", "amounts", "cut")}
        return {"accuracy": asdict(self.accuracy), **shares, "right": [int(hit) for hit in self.right]}

    def __str__(self) -> str:
        shares = self.as_json()
        return (
            f"{self.accuracy}, in form {shares['formed']:.2f}, last number right {shares['amounts']:.2f}, "
            f"cut {shares['cut']:.2f}"
        )


def graded(questions: Sequence[Question], replies: Sequence[Kept]) -> Grades:
    """One reply per question, in the same order."""
    wanted = [final_number(question.answer) for question in questions]
    numbers = [final_number(reply.reply) for reply in replies]
    amounts = [last_number(reply.reply) for reply in replies]
    return Grades(
        right=tuple(number == answer for number, answer in zip(numbers, wanted, strict=True)),
        formed=tuple(number is not None for number in numbers),
        amounts=tuple(number == answer for number, answer in zip(amounts, wanted, strict=True)),
        cut=tuple(not reply.ended for reply in replies),
    )


def difference(ours: Grades, others: Grades) -> Interval:
    """Accuracy of one system less that of another on the same questions."""
    return bootstrapped(_minus, ours.right, others.right)


def _minus(a: float, b: float) -> float:
    return a - b
