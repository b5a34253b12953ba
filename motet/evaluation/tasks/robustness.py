"""Robustness of forgetting: does what was forgotten come back when it is asked for in another way?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from motet.evaluation.asking import Messages
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import rouge_l_recall
from motet.evaluation.measures.statistics import mean
from motet.evaluation.settings import RecipeError
from motet.evaluation.subject import turns
from motet.evaluation.tasks.task import MaxTokens, Task

NUM_SHOTS = 5

# Given the forget item, a retain item to mix in, and answered retain questions: the chat, or None where the item
# lacks what the condition needs.
Condition = Callable[[Item, Item, Sequence[Item]], Messages | None]


def plain(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """The question as it stands."""
    return [("user", item.question)]


def five_shot(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """Behind five answered retain questions."""
    return [*turns([(shot.question, shot.answer) for shot in shots[:NUM_SHOTS]]), ("user", item.question)]


def rephrased(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """The question in other words."""
    return [("user", item.paraphrased_question)] if item.paraphrased_question else None


def mixed(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """A retain question and the forget question in one message."""
    return [("user", f"{other.question} {item.question}")]


def reintroduced(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """The fact itself stands in the context: what the user tells must stay usable, or the forgetting shows."""
    return [("user", f"{item.statement or item.paraphrase} {item.question}")]


def translated(item: Item, other: Item, shots: Sequence[Item]) -> Messages | None:
    """The question in another language."""
    return [("user", item.translated_question)] if item.translated_question else None


CONDITIONS: dict[str, Condition] = {
    "plain": plain,
    "five_shot": five_shot,
    "rephrased": rephrased,
    "mixed": mixed,
    "reintroduced": reintroduced,
    "translated": translated,
}
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

    async def run(self, bench: Bench) -> Findings:
        items, retain = bench.items(self.forget), bench.items(self.retain)
        chats = {name: _chats(name, items, retain, self.forget) for name in self.conditions}
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
                "value_named": None if item.value is None else item.value in reply.text,
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


def _chats(condition: str, items: Sequence[Item], retain: Sequence[Item], file: str) -> list[Messages]:
    """The chat of every item; another retain question is mixed into each.

    Raises:
        RecipeError: items lack what the condition asks for.
    """
    chats = [CONDITIONS[condition](item, retain[(NUM_SHOTS + i) % len(retain)], retain) for i, item in enumerate(items)]
    lacking = sum(chat is None for chat in chats)
    if lacking:
        raise RecipeError([f"{file}: {lacking} of {len(items)} questions cannot be asked {condition}."])
    return [chat for chat in chats if chat is not None]
