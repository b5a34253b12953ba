"""MUSE: six ways to look at unlearning (Shi et al. 2024, arXiv:2407.06460)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from motet.evaluation.bench import Bench, Findings
from motet.evaluation.data import read_excerpts, read_texts
from motet.evaluation.measures.answers import rouge_l_f1
from motet.evaluation.measures.likelihood import auc, min_k, priv_leak
from motet.evaluation.measures.statistics import mean
from motet.evaluation.subject import Subject, turns
from motet.evaluation.tasks.task import MaxTokens, Task
from motet.settings import Setting

Record = dict[str, Any]


class Knowledge(Setting, frozen=True):
    """Questions of `data`, behind all questions of `examples` with their answers (MUSE's `_icl` files)."""

    data: str
    examples: str | None = None

    @property
    def files(self) -> list[str]:
        return [self.data, *([self.examples] if self.examples else [])]


class Privacy(Setting, frozen=True):
    """Texts that were to be forgotten, texts that no model ever read, and the retain-only subject that their
    separation is compared with. `k`: the share of Min-K%."""

    forget: str
    holdout: str
    reference: str
    k: Annotated[float, Field(gt=0, le=1)] = 0.4

    @property
    def files(self) -> list[str]:
        return [self.forget, self.holdout]


class Muse(Task, frozen=True):
    """What applies of: verbatim memorisation (`verbatim`: ROUGE-L F1 of 128 generated tokens with the text's
    continuation), knowledge memorisation (`forget_knowledge`) and utility (`retain_knowledge`), both ROUGE-L F1 of
    greedy answers of 32 tokens, privacy leakage (`privacy`: PrivLeak by Min-40%), and two series of subjects:
    `scalability` (forget sets of growing size) and `sustainability` (one request after another), whose utility is
    given as the share of the series' first subject's.

    The paper calls its measure ROUGE; its repository reports the F1 of ROUGE-L on unstemmed words, and so do we. It
    cuts the text's continuation to 128 tokens too; here it counts whole, so long excerpts should be cut in the file.
    It cuts answers at a blank line or the next "Question"; here they end with the chat, or at a line break.
    """

    type: Literal["muse"] = "muse"
    verbatim: str | None = None
    forget_knowledge: Knowledge | None = None
    retain_knowledge: Knowledge | None = None
    privacy: Privacy | None = None
    scalability: tuple[str, ...] = ()
    sustainability: tuple[str, ...] = ()
    verbatim_tokens: MaxTokens = 128
    knowledge_tokens: MaxTokens = 32

    @model_validator(mode="after")
    def _something(self) -> Muse:
        parts = (self.verbatim, self.forget_knowledge, self.retain_knowledge, self.privacy)
        if not any(parts):
            raise ValueError("give one of verbatim, forget_knowledge, retain_knowledge, privacy")
        if (self.scalability or self.sustainability) and not self.retain_knowledge:
            raise ValueError("scalability and sustainability are series of utilities: give retain_knowledge")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        parts = (self.forget_knowledge, self.retain_knowledge, self.privacy)
        return (*([self.verbatim] if self.verbatim else []), *(file for part in parts if part for file in part.files))

    @property
    def named(self) -> Mapping[str, str]:
        series = {"scalability": self.scalability, "sustainability": self.sustainability}
        named = {f"{field}.{i}": name for field, names in series.items() for i, name in enumerate(names)}
        return named | ({"privacy.reference": self.privacy.reference} if self.privacy else {})

    def requests(self, bench: Bench) -> int:
        asked = [knowledge for knowledge in (self.forget_knowledge, self.retain_knowledge) if knowledge]
        texts = (self.privacy.forget, self.privacy.holdout) if self.privacy else ()
        count = len(read_excerpts(bench.root / self.verbatim, bench.limit)) if self.verbatim else 0
        count += sum(len(bench.items(knowledge.data)) for knowledge in asked)
        count += sum(len(read_texts(bench.root / file, bench.limit)) for file in texts)
        return len(bench.subjects) * count

    async def run(self, bench: Bench) -> Findings:
        records: list[Record] = []
        for name, subject in bench.subjects.items():
            records += [{"subject": name, **record} for record in await self._records(bench, subject)]
        measures = {name: self._row(records, name) for name in bench.subjects}
        for field, names in {"scalability": self.scalability, "sustainability": self.sustainability}.items():
            for name in names:
                measures[name][field] = _share(measures[name].get("utility"), measures[names[0]].get("utility"))
        return Findings(measures, records)

    async def _records(self, bench: Bench, subject: Subject) -> list[Record]:
        records = await self._verbatim(bench, subject) if self.verbatim else []
        for part, asked in {"forget": self.forget_knowledge, "retain": self.retain_knowledge}.items():
            records += await self._knowledge(bench, subject, part, asked) if asked else []
        return records + (await self._texts(bench, subject, self.privacy) if self.privacy else [])

    async def _verbatim(self, bench: Bench, subject: Subject) -> list[Record]:
        excerpts = read_excerpts(bench.root / (self.verbatim or ""), bench.limit)
        calls = [bench.api.complete(subject, e.prompt, max_tokens=self.verbatim_tokens) for e in excerpts]
        return [
            {"part": "verbatim", "prompt": e.prompt, "reply": reply.text, "value": rouge_l_f1(reply.text, e.gt)}
            for e, reply in zip(excerpts, await bench.api.together(calls), strict=True)
        ]

    async def _knowledge(self, bench: Bench, subject: Subject, part: str, asked: Knowledge) -> list[Record]:
        items = bench.items(asked.data)
        shots = turns([(i.question, i.answer) for i in bench.items(asked.examples)]) if asked.examples else []
        calls = [
            bench.api.chat(subject, [*shots, *subject.messages(i.question)], max_tokens=self.knowledge_tokens)
            for i in items
        ]
        replies = [reply.text.split("\n")[0] for reply in await bench.api.together(calls)]
        return [
            {"part": part, "question": i.question, "reply": reply, "value": rouge_l_f1(reply, i.answer)}
            for i, reply in zip(items, replies, strict=True)
        ]

    async def _texts(self, bench: Bench, subject: Subject, privacy: Privacy) -> list[Record]:
        records: list[Record] = []
        for part, file in {"member": privacy.forget, "other": privacy.holdout}.items():
            texts = read_texts(bench.root / file, bench.limit)
            scored = await bench.api.together([bench.api.score_text(subject, text) for text in texts])
            records += [
                {"part": part, "text": text, "value": min_k(logprobs, privacy.k)}
                for text, logprobs in zip(texts, scored, strict=True)
            ]
        return records

    def _row(self, records: Sequence[Record], subject: str) -> dict[str, float | None]:
        of = {part: _values(records, subject, part) for part in ("verbatim", "forget", "retain")}
        named = {"verbatim memorisation": "verbatim", "knowledge memorisation": "forget", "utility": "retain"}
        row: dict[str, float | None] = {name: mean(of[part]) for name, part in named.items() if of[part]}
        if self.privacy is not None:
            own, reference = (_auc(records, name) for name in (subject, self.privacy.reference))
            row |= {"Min-K% AUC": own, "PrivLeak": priv_leak(own, reference)}
        return row


def _values(records: Sequence[Record], subject: str, part: str) -> list[float]:
    return [record["value"] for record in records if (record["subject"], record["part"]) == (subject, part)]


def _auc(records: Sequence[Record], subject: str) -> float:
    return auc(_values(records, subject, "member"), _values(records, subject, "other"))


def _share(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None
