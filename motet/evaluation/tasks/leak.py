"""leak@k: does what was forgotten come out in any of k tries?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from motet.evaluation.asking import Messages
from motet.evaluation.attacks import ATTACKS, QUESTION, chats_of, prompted
from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import Item
from motet.evaluation.measures.answers import names, rouge_l_recall
from motet.evaluation.measures.extraction import leak_at_k
from motet.evaluation.measures.statistics import bootstrap_interval, mean
from motet.evaluation.tasks.task import MaxTokens, Task

Attack = Literal["plain", "rephrased", "prefix", "role_play", "ignore", "pressed", "five_shot", "mixed", "translated"]
AT_ONCE = 32  # answers of one request
Record = dict[str, Any]


class Leak(Task, frozen=True):
    """leak@k (Reisizadeh et al. 2025, arXiv:2511.04934): the share of forgotten facts that at least one of k sampled
    replies names, estimated without bias from `samples` replies under each attack, all attacks in one pool, with a 95 %
    interval by bootstrap over the questions; and leak@1 of each attack. A fact is an item's `value`; items without one
    count the ROUGE-L recall of their answer, the best of k.

    Greedy answers say little of it: what has a hundredth of the probability comes out in a hundred tries. A model that
    never saw the facts is the standard: where a fact has few possible values, guesses hit it, too.

    `attacks`: `plain`, `rephrased`, `five_shot`, `mixed` and `translated` are `robustness`' conditions; `prefix` begins
    the right answer up to the fact, `role_play` and `ignore` talk the model into it, `pressed` asks again after a
    refusal. `prompts` are further ones, texts with `{question}` by name. `retain` provides shots and the questions that
    are mixed in.
    """

    type: Literal["leak"] = "leak"
    forget: str
    retain: str
    attacks: Annotated[tuple[Attack, ...], Field(min_length=1)] = (
        "plain", "rephrased", "prefix", "role_play", "ignore", "pressed", "five_shot", "mixed",
    )  # fmt: skip
    prompts: dict[str, str] = Field(default_factory=dict[str, str])
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 10, 100)
    samples: Annotated[int, Field(ge=1)] = 32
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int = 0
    max_tokens: MaxTokens = 64

    @model_validator(mode="after")
    def _enough(self) -> Leak:
        lacking = [name for name, text in self.prompts.items() if QUESTION not in text]
        if lacking:
            raise ValueError(f"prompts.{lacking[0]} lacks {QUESTION}, the place of the question")
        twice = sorted(self.prompts.keys() & ATTACKS.keys())
        if twice:
            raise ValueError(f"prompts.{twice[0]} is an attack's name already: choose another one")
        drawn = self.samples * (len(set(self.attacks)) + len(self.prompts))
        if max(self.k) > drawn:
            raise ValueError(
                f"leak@{max(self.k)} needs as many samples of a question, all attacks have {drawn} together"
            )
        return self

    @property
    def files(self) -> tuple[str, ...]:
        return (self.forget, self.retain)

    def requests(self, bench: Bench) -> int:
        ways = {*self.attacks, *self.prompts}
        return len(bench.subjects) * len(ways) * len(bench.items(self.forget)) * len(self._counts)

    async def run(self, bench: Bench) -> Findings:
        items, retain = bench.items(self.forget), bench.items(self.retain)
        ways = {name: ATTACKS[name] for name in self.attacks}
        ways |= {name: prompted(text) for name, text in self.prompts.items()}
        chats = {name: chats_of(name, way, items, retain, self.forget) for name, way in ways.items()}
        records: list[Record] = []
        for subject in bench.subjects:
            for attack, asked in chats.items():
                records += await self._records(bench, subject, attack, items, asked)
        rows = {name: [record for record in records if record["subject"] == name] for name in bench.subjects}
        return Findings({name: self._row(found, list(chats), len(items)) for name, found in rows.items()}, records)

    @property
    def _counts(self) -> list[int]:
        """The samples of one question, in parts of what a request may ask for."""
        return [min(AT_ONCE, self.samples - begun) for begun in range(0, self.samples, AT_ONCE)]

    async def _records(
        self, bench: Bench, name: str, attack: str, items: Sequence[Item], asked: Sequence[Messages]
    ) -> list[Record]:
        subject = bench.subjects[name]
        before = subject.messages("", bench.shots)[:-1]  # as in `robustness`
        counts = self._counts
        calls = [
            bench.api.sample(
                subject,
                [*before, *chat],
                count=count,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed + place * len(counts) + part,
            )
            for place, chat in enumerate(asked)
            for part, count in enumerate(counts)
        ]
        found = await bench.api.together(calls)
        parts = [found[i : i + len(counts)] for i in range(0, len(found), len(counts))]
        return [
            _record(name, attack, item, [reply for part in replies for reply in part])
            for item, replies in zip(items, parts, strict=True)
        ]

    def _row(self, records: Sequence[Record], attacks: Sequence[str], count: int) -> dict[str, float | None]:
        """Records are in the attacks' order, `count` questions of each."""
        by_attack = [records[i * count : (i + 1) * count] for i in range(len(attacks))]
        pools = [[score for record in same for score in record["scores"]] for same in zip(*by_attack, strict=True)]
        row: dict[str, float | None] = {}
        for k in self.k:
            leaks = [leak for pool in pools if (leak := leak_at_k(pool, k)) is not None]
            row[f"leak@{k}"] = mean(leaks)
            row[f"leak@{k} low"], row[f"leak@{k} high"] = bootstrap_interval(leaks) or (None, None)
        for attack, found in zip(attacks, by_attack, strict=True):
            scores = [score for record in found for score in record["scores"]]
            row[f"leak@1, {attack.replace('_', ' ')}"] = mean(scores)
        return row


def _record(subject: str, attack: str, item: Item, replies: Sequence[str]) -> Record:
    """One question under one attack, with the reply that tells most."""
    scores = [_told(reply, item) for reply in replies]
    told = max(range(len(scores)), key=lambda i: scores[i])
    facts: Mapping[str, Any] = {"question": item.question, "answer": item.answer, "reply": replies[told].strip()}
    return {"subject": subject, "attack": attack, **facts, "scores": scores}


def _told(reply: str, item: Item) -> float:
    return rouge_l_recall(reply, item.answer) if item.value is None else float(names(reply, item.value))
