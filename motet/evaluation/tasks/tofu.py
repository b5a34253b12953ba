"""TOFU: has a subject forgotten, and what does it still know?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import rouge_l_recall
from motet.evaluation.measures.likelihood import (
    Average,
    answer_probability,
    choice_probability,
    forget_score,
    knowledge_score,
    truth_ratio,
)
from motet.evaluation.measures.statistics import harmonic_mean, mean, two_sample_ks
from motet.evaluation.settings import RecipeError
from motet.evaluation.subject import Subject
from motet.evaluation.tasks.task import MaxTokens, Task

SMALLEST = 1e-300  # p-values below are 0 in double precision


@dataclass(frozen=True, slots=True)
class Measured:
    """One question under one subject; `choice` is the probability among the right and the wrong answers."""

    probability: float
    choice: float
    rouge: float
    ratio: float
    reply: str


class Tofu(Task, frozen=True):
    """TOFU (Maini et al. 2024, arXiv:2401.06121), per split and together.

    `forget` is the forget set, `splits` the sets to be kept (TOFU's: retain, real authors, world facts). `reference`
    is the retain-only subject that forget quality is measured against (without it, there is none). `choices` are the
    splits on which the probability is that among the right and the wrong answers. `average` is the mean over wrong
    answers in the truth ratio. `end` is the text of the end token where it shall count as an answer's last token, as
    in TOFU's repository.
    """

    type: Literal["tofu"] = "tofu"
    forget: str
    splits: dict[str, str] = Field(min_length=1)
    reference: str | None = None
    choices: tuple[str, ...] = ()
    average: Average = "arithmetic"
    end: str = ""
    max_tokens: MaxTokens = 64

    @property
    def files(self) -> tuple[str, ...]:
        return (self.forget, *self.splits.values())

    @property
    def named(self) -> Mapping[str, str]:
        return {} if self.reference is None else {"reference": self.reference}

    def requests(self, bench: Bench) -> int:
        questions = sum(len(bench.items(file)) for file in ({"forget": self.forget} | self.splits).values())
        return len(bench.subjects) * 2 * questions  # a reply, and scores

    async def run(self, bench: Bench) -> Findings:
        sets = {"forget": bench.items(self.forget)} | {name: bench.items(file) for name, file in self.splits.items()}
        check_wrong_answers({name: self.splits.get(name, self.forget) for name in sets}, sets)
        found = {
            subject: {name: await self._measured(bench, bench.subjects[subject], items) for name, items in sets.items()}
            for subject in self._reference_first(bench)
        }
        measures = {subject: self._row(found[subject], found) for subject in bench.subjects}
        records = [
            {"subject": subject, "split": name, "question": item.question, "reply": m.reply, "truth_ratio": m.ratio,
             "probability": m.probability, "rouge_l_recall": m.rouge}
            for subject, splits in found.items()
            for name, measured in splits.items()
            for item, m in zip(sets[name], measured, strict=True)
        ]  # fmt: skip
        return Findings(measures, records)

    def _reference_first(self, bench: Bench) -> list[str]:
        return sorted(bench.subjects, key=lambda name: name != self.reference)

    async def _measured(self, bench: Bench, subject: Subject, items: Sequence[Item]) -> list[Measured]:
        replies = await bench.ask(subject, [item.question for item in items], max_tokens=self.max_tokens)
        scores = await bench.score(
            subject,
            [
                (i.question, [f"{text}{self.end}" for text in (i.answer, i.paraphrase, *i.perturbed_answer)])
                for i in items
            ],
        )
        return [
            Measured(
                answer_probability(right),
                choice_probability(right, wrong),
                rouge_l_recall(reply.text, item.answer),
                truth_ratio(paraphrase, wrong, self.average),
                reply.text,
            )
            for item, reply, (right, paraphrase, *wrong) in zip(items, replies, scores, strict=True)
        ]

    def _row(
        self, splits: Mapping[str, Sequence[Measured]], found: Mapping[str, Mapping[str, Sequence[Measured]]]
    ) -> dict[str, float | None]:
        forget = splits["forget"]
        row: dict[str, float | None] = {}
        if self.reference is not None:
            theirs = found[self.reference]["forget"]
            distance, p = two_sample_ks([m.ratio for m in forget], [m.ratio for m in theirs])
            row |= {"forget quality": p, "log10 forget quality": math.log10(max(p, SMALLEST)), "KS distance": distance}
        kept = {name: self._knowledge(name, splits[name]) for name in self.splits}
        row["model utility"] = harmonic_mean([value for values in kept.values() for value in values.values()])
        row |= {
            "forget probability": mean([m.probability for m in forget]),
            "forget ROUGE-L": mean([m.rouge for m in forget]),
            "forget truth ratio": forget_score([m.ratio for m in forget]),
        }
        return row | {f"{split} {name}": value for split, values in kept.items() for name, value in values.items()}

    def _knowledge(self, split: str, measured: Sequence[Measured]) -> dict[str, float]:
        probability = [m.choice if split in self.choices else m.probability for m in measured]
        return {
            "probability": mean(probability) or 0.0,
            "ROUGE-L": mean([m.rouge for m in measured]) or 0.0,
            "truth ratio": knowledge_score([m.ratio for m in measured]) or 0.0,
        }


def check_wrong_answers(files: Mapping[str, str], sets: Mapping[str, Sequence[Item]]) -> None:
    """Raises RecipeError: files with questions that have no wrong answers."""
    problems = [
        f"{files[name]}: {lacking} of {len(items)} questions have no 'perturbed_answer'."
        for name, items in sets.items()
        if (lacking := sum(not item.perturbed_answer for item in items))
    ]
    if problems:
        raise RecipeError(problems)


def ratio_record(subject: str, item: Item, ratio: float) -> dict[str, Any]:
    """A record of one question's truth ratio."""
    return {"subject": subject, "question": item.question, "truth_ratio": ratio}
