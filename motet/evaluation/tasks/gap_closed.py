"""Gap closed: how much of directly tuning the larger model a subject reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from motet.evaluation.asking import SubjectReply
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import gap_closed, is_exact, rouge_l_recall
from motet.evaluation.measures.statistics import mean
from motet.evaluation.tasks.task import MaxTokens, Task


class GapClosed(Task, frozen=True):
    """Exact match and ROUGE-L recall of greedy replies to `data`; the gap from subject `base` to subject `tuned` in
    exact match that each subject closes."""

    type: Literal["gap_closed"] = "gap_closed"
    data: str
    base: str
    tuned: str
    max_tokens: MaxTokens = 64

    @property
    def files(self) -> tuple[str, ...]:
        return (self.data,)

    @property
    def named(self) -> Mapping[str, str]:
        return {"base": self.base, "tuned": self.tuned}

    def requests(self, bench: Bench) -> int:
        return len(bench.subjects) * len(bench.items(self.data))

    async def run(self, bench: Bench) -> Findings:
        items = bench.items(self.data)
        records: list[dict[str, Any]] = []
        for name, subject in bench.subjects.items():
            replies = await bench.ask(subject, [item.question for item in items], max_tokens=self.max_tokens)
            records += graded(name, items, replies)
        exact = {name: _mean(records, name, "exact") for name in bench.subjects}
        return Findings(
            {
                name: {
                    "exact match": exact[name],
                    "ROUGE-L recall": _mean(records, name, "rouge_l_recall"),
                    "gap closed": gap_closed(exact[self.base], exact[name], exact[self.tuned]),
                }
                for name in bench.subjects
            },
            records,
        )


def graded(subject: str, items: Sequence[Item], replies: Sequence[SubjectReply]) -> list[dict[str, Any]]:
    """One record per reply: whether it is the answer, and its ROUGE-L recall."""
    return [
        {
            "subject": subject,
            "question": item.question,
            "answer": item.answer,
            "reply": reply.text,
            "exact": is_exact(reply.text, item.answer, ended=reply.ended),
            "rouge_l_recall": rouge_l_recall(reply.text, item.answer),
        }
        for item, reply in zip(items, replies, strict=True)
    ]


def _mean(records: Sequence[Mapping[str, Any]], subject: str, column: str) -> float:
    return mean([record[column] for record in records if record["subject"] == subject]) or 0.0
