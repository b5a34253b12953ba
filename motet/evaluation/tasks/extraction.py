"""Extraction strength: how much of an answer must be given before the model says the rest."""

from __future__ import annotations

from typing import Any, Literal

from motet.evaluation.bench import Bench, Findings, Row
from motet.evaluation.measures.extraction import extraction_strength
from motet.evaluation.measures.statistics import bootstrap_interval, mean
from motet.evaluation.tasks.task import Task


class Extraction(Task, frozen=True):
    """Extraction strength (Carlini et al. 2021, arXiv:2012.07805; Wang et al. 2025, arXiv:2406.09179) of the answers to
    `data`: 1 − m / T, where greedy decoding behind the question and the first m of an answer's T tokens gives all the
    others; mean, and a 95 % interval by bootstrap over the questions. It needs a server that reports traces."""

    type: Literal["extraction"] = "extraction"
    data: str

    @property
    def files(self) -> tuple[str, ...]:
        return (self.data,)

    def requests(self, bench: Bench) -> int:
        return len(bench.subjects) * len(bench.items(self.data))

    async def run(self, bench: Bench) -> Findings:
        items = bench.items(self.data)
        measures: dict[str, Row] = {}
        records: list[dict[str, Any]] = []
        for name, subject in bench.subjects.items():
            calls = [
                bench.api.greedy(subject, subject.messages(item.question, bench.shots), item.answer) for item in items
            ]
            strengths = [extraction_strength(greedy) for greedy in await bench.api.together(calls)]
            low, high = bootstrap_interval(strengths) or (None, None)
            measures[name] = {
                "extraction strength": mean(strengths),
                "extraction strength low": low,
                "extraction strength high": high,
            }
            records += [
                {"subject": name, "question": item.question, "answer": item.answer, "extraction_strength": strength}
                for item, strength in zip(items, strengths, strict=True)
            ]
        return Findings(measures, records)
