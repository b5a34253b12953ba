"""Robustness of forgetting: does what was forgotten come back when it is asked for in another way?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from motet.evaluation.asking import Messages
from motet.evaluation.attacks import CONDITIONS, chats_of
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import names, rouge_l_recall
from motet.evaluation.measures.statistics import mean
from motet.evaluation.tasks.task import MaxTokens, Task

Name = Literal["plain", "five_shot", "rephrased", "mixed", "reintroduced", "translated"]


class Robustness(Task, frozen=True):
    """ROUGE-L recall of the forgotten answer, and where items have a `value` the share of replies that name it, under
    each of `conditions` (Lynch et al. 2024, arXiv:2402.16835, asked many of them first). `retain` provides the
    five shots and the question that is mixed in. Lower is more forgotten, except for `reintroduced`, where the
    retain-only model shows what is natural."""

    type: Literal["robustness"] = "robustness"
    forget: str
    retain: str
    conditions: tuple[Name, ...] = ("plain", "five_shot", "rephrased", "mixed", "reintroduced")
    max_tokens: MaxTokens = 64

    @property
    def files(self) -> tuple[str, ...]:
        return (self.forget, self.retain)

    def requests(self, bench: Bench) -> int:
        return len(bench.subjects) * len(dict.fromkeys(self.conditions)) * len(bench.items(self.forget))

    async def run(self, bench: Bench) -> Findings:
        items, retain = bench.items(self.forget), bench.items(self.retain)
        chats = {name: chats_of(name, CONDITIONS[name], items, retain, self.forget) for name in self.conditions}
        records: list[dict[str, Any]] = []
        for name in bench.subjects:
            for condition, asked in chats.items():
                records += await self._records(bench, name, condition, items, asked)
        return Findings({name: self._row(records, name) for name in bench.subjects}, records)

    async def _records(
        self,
        bench: Bench,
        name: str,
        condition: str,
        items: Sequence[Item],
        asked: Sequence[Messages],
    ) -> list[dict[str, Any]]:
        subject = bench.subjects[name]
        # the subject's instructions and examples come first; its question's place is taken by the whole chat
        before = subject.messages("", bench.shots)[:-1]
        calls = [bench.api.chat(subject, [*before, *chat], max_tokens=self.max_tokens) for chat in asked]
        return [
            {
                "subject": name,
                "condition": condition,
                "question": item.question,
                "reply": reply.text,
                "rouge_l_recall": rouge_l_recall(reply.text, item.answer),
                "value_named": None if item.value is None else names(reply.text, item.value),
            }
            for item, reply in zip(items, await bench.api.together(calls), strict=True)
        ]

    def _row(self, records: Sequence[Mapping[str, Any]], subject: str) -> dict[str, float | None]:
        row: dict[str, float | None] = {}
        for column, said in {"value_named": "value named", "rouge_l_recall": "ROUGE-L"}.items():
            for condition in self.conditions:
                values = [
                    record[column]
                    for record in records
                    if (record["subject"], record["condition"]) == (subject, condition) and record[column] is not None
                ]
                if values:
                    row[f"{said}, {condition.replace('_', ' ')}"] = mean(values)
        return row
