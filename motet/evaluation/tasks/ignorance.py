"""Ignorance calibration: has a subject forgotten as one forgets who never knew? No retain-only model is needed.

Forget quality asks whether the truth ratios of forgotten questions are those of a model that never saw the forgotten
data. Whoever unlearns because retraining is too dear has no such model. But the model at hand has met entities that
it never saw, and can meet more: invented ones, written after the forget set's pattern (the demo world invents them;
elsewhere the user writes fresh names into the forget set's questions, or swaps the names in retained questions, with
answers drawn from the same kinds of value). How a model answers about nobody is how its own kind is ignorant: same
architecture, same tuning, same habits of guessing. A retain-only model is, on forgotten questions, a model of that
kind asked about nobody. So the truth ratios of unknown questions stand in for the retain-only model's:

    D(w) = Kolmogorov–Smirnov distance( r(forget validation; subject at w), r(unknown; `ignorant`) )

and the weight is the one with the smallest distance (`best`), or the smallest one whose p-value exceeds a level
(`first`). Too small a weight leaves the right answers too likely, too large a weight makes them conspicuously
unlikely: both move the distribution away, so the distance has a minimum between.

`ignorant` is by default the subject itself (a composition that also hurts what it should leave alone then is compared
with its own damage); name the model before unlearning to compare with ignorance as it was.

The p-value at the chosen weight says whether choosing was enough: where it stays tiny at every weight, no weight makes
the subject ignorant in this way, and the assistant (or the mask) has to change; often it has learned the answers in
one wording only.

What it takes for granted: that the unknown questions are like the forgotten ones in kind, wording and values, and
that the answers about unknown entities are as good as random. The choice is made on validation entities; what is
reported belongs to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from motet.evaluation.bench import Bench, Findings, Row
from motet.evaluation.data import Item
from motet.evaluation.measures.likelihood import Average, truth_ratio
from motet.evaluation.measures.statistics import two_sample_ks
from motet.evaluation.subject import Subject
from motet.evaluation.tasks.task import Task
from motet.evaluation.tasks.tofu import check_wrong_answers, ratio_record


class Ignorance(Task, frozen=True):
    """`forget`: validation questions that shall be forgotten; `unknown`: questions about nobody; `ignorant`: the
    subject whose ignorance of nobody is the standard, by default each subject its own; `average` as in `tofu`."""

    type: Literal["ignorance"] = "ignorance"
    forget: str
    unknown: str
    ignorant: str | None = None
    average: Average = "arithmetic"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.forget, self.unknown)

    @property
    def named(self) -> Mapping[str, str]:
        return {} if self.ignorant is None else {"ignorant": self.ignorant}

    def requests(self, bench: Bench) -> int:
        standards = 1 if self.ignorant else len(bench.subjects)
        return len(bench.subjects) * len(bench.items(self.forget)) + standards * len(bench.items(self.unknown))

    async def run(self, bench: Bench) -> Findings:
        sets = {"forget": bench.items(self.forget), "unknown": bench.items(self.unknown)}
        check_wrong_answers({"forget": self.forget, "unknown": self.unknown}, sets)
        forget = {name: await self._ratios(bench, s, sets["forget"]) for name, s in bench.subjects.items()}
        standards = [self.ignorant] if self.ignorant else list(bench.subjects)
        unknown = {name: await self._ratios(bench, bench.subjects[name], sets["unknown"]) for name in standards}
        measures: dict[str, Row] = {}
        for name, ratios in forget.items():
            distance, p = two_sample_ks(ratios, unknown[self.ignorant or name])
            measures[name] = {"ignorance distance": distance, "ignorance p": p}
        records = [
            {"set": kind, **ratio_record(name, item, ratio)}
            for kind, found in {"forget": forget, "unknown": unknown}.items()
            for name, ratios in found.items()
            for item, ratio in zip(sets[kind], ratios, strict=True)
        ]
        return Findings(measures, records)

    async def _ratios(self, bench: Bench, subject: Subject, items: Sequence[Item]) -> list[float]:
        asked = [(item.question, (item.paraphrase, *item.perturbed_answer)) for item in items]
        scores = await bench.score(subject, asked)
        return [truth_ratio(right, wrong, self.average) for right, *wrong in scores]
