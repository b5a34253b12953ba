"""GSM8K as all systems sit it: the same questions, the same four examples, the same room for an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer

from benchmarks.real.grades import Grades, graded
from benchmarks.real.questions import TEST, TRAIN, Question, read_questions, write_training_file
from benchmarks.real.replies import Replies, System
from benchmarks.real.setup import LARGE, SMALL, Setup

EXAMPLES = 4
FORM = "Solve the problem step by step. End with a line that holds '#### ' and the answer's number alone."
PROMPTED = {"instructions": FORM, "examples": EXAMPLES}
SHOWN = 3  # replies of each system that are written for people to read
ROOM = 1.25  # tokens that an answer may have, in 99th percentiles of the training answers


class Exam:
    """Replies are kept in the work folder of `gsm8k`, for every stage that asks these questions."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.folder = setup, setup.folder("gsm8k")
        self.questions = read_questions(setup.gsm8k, TEST, 0, setup.size.questions)
        self.examples = read_questions(setup.gsm8k, TRAIN, 0, EXAMPLES)
        self.answers = read_questions(setup.gsm8k, TRAIN, EXAMPLES, setup.size.answers)

    @cached_property
    def max_tokens(self) -> int:
        """A quarter more than 99 % of the first thousand training answers have, the end included."""
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(self.setup.model(LARGE))
        rows = read_questions(self.setup.gsm8k, TRAIN, EXAMPLES, 1000)
        lengths = sorted(len(tokenizer(row.answer).input_ids) + 1 for row in rows)
        return math.ceil(ROOM * lengths[int(0.99 * len(lengths))])

    @cached_property
    def training_file(self) -> Path:
        """The training answers, none of them an example."""
        file = self.folder / f"answers-{len(self.answers)}.jsonl"
        write_training_file(self.answers, file)
        return file

    def sat_by(self, system: System) -> Grades:
        """Asks what was not asked before, and grades all replies; the first of them go to a file for people."""
        shots = [(row.question, row.answer) for row in self.examples] if system.subject.get("examples") else []
        replies = Replies(self.folder / f"{system.name}.jsonl", system, self.max_tokens, shots)
        texts = [question.question for question in self.questions]
        replies.ask(texts, self.setup.dtype)
        found = replies.of(texts)
        grades = graded(self.questions, found)
        self._show(system.name, [(q, kept.reply) for q, kept in zip(self.questions, found, strict=True)][:SHOWN])
        print(f"{system.name}: {grades}", flush=True)
        return grades

    def _show(self, name: str, rows: list[tuple[Question, str]]) -> None:
        shown = [f"QUESTION: {q.question}\n\nREFERENCE:\n{q.answer}\n\nREPLY:\n{reply}\n" for q, reply in rows]
        (self.folder / f"{name}.txt").write_text(f"\n{'=' * 80}\n".join(shown), encoding="utf-8")


def large_alone(setup: Setup, name: str, subject: Mapping[str, Any], temperature: float = 0.0) -> System:
    """The larger model by itself."""
    return System(name, {"large": setup.model(LARGE)}, {"model": "large", **subject}, temperature)


def both(setup: Setup) -> dict[str, Path]:
    """The untuned models, by the names that compositions call them."""
    return {"large": setup.model(LARGE), "small": setup.model(SMALL)}
