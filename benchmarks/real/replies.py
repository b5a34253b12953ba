"""What systems reply to questions, asked through Motet's application over HTTP in this process; kept on disk reply by
reply, so that nothing is asked twice."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from motet.evaluation.asking import Api
from motet.evaluation.backend import in_process
from motet.evaluation.subject import Pair, Subject

AT_ONCE = 16
CACHE_GIB = 2.0
LENGTH = 2048  # tokens of the longest prompt with its answer


@dataclass(frozen=True, slots=True)
class System:
    """What is asked: `models` by the name that `subject` (as of an evaluation's recipe) knows them by."""

    name: str
    models: Mapping[str, Path]
    subject: Mapping[str, Any]
    temperature: float = 0.0

    def operator_file(self, dtype: str) -> str:
        """All members read the conversation, each through its own chat template."""
        models = {name: {"path": str(path), "template": "chat"} for name, path in self.models.items()}
        engine = {"dtype": dtype, "kv_cache_gib": CACHE_GIB, "max_running": AT_ONCE, "max_model_len": LENGTH}
        return yaml.safe_dump({"models": models, "engine": engine}, sort_keys=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """One reply. `ended`: by itself, not cut at `max_tokens`; `asked` says of what system it is."""

    question: str
    reply: str
    ended: bool
    max_tokens: int
    asked: Mapping[str, Any]


@dataclass
class Replies:
    """The replies of one system: one JSON line each in `file`, in the order in which they came."""

    file: Path
    system: System
    max_tokens: int
    shots: Sequence[Pair] = ()
    _kept: dict[str, Kept] = field(init=False, default_factory=dict[str, Kept])

    def __post_init__(self) -> None:
        lines = self.file.read_text(encoding="utf-8").split("\n") if self.file.is_file() else []
        whole = [json.loads(line) for line in lines[:-1]]  # a killed run may leave half a line
        found = [Kept(**row) for row in whole]
        self._kept = {row.question: row for row in found if self._is_ours(row)}

    def _is_ours(self, row: Kept) -> bool:
        return row.max_tokens == self.max_tokens and row.asked == self._asked

    @property
    def _asked(self) -> dict[str, Any]:
        models = {name: str(path) for name, path in self.system.models.items()}
        shots = [list(pair) for pair in self.shots]
        return {
            "models": models,
            "subject": self.system.subject,
            "temperature": self.system.temperature,
            "shots": shots,
        }

    def missing(self, questions: Sequence[str]) -> list[str]:
        """The questions that were not answered yet."""
        return [question for question in questions if question not in self._kept]

    def of(self, questions: Sequence[str]) -> list[Kept]:
        """The replies to questions that have all been answered, in their order."""
        return [self._kept[question] for question in questions]

    def ask(self, questions: Sequence[str], dtype: str) -> None:
        """Asks what is missing, 16 requests at once."""
        missing = self.missing(questions)
        print(f"{self.system.name}: {len(questions) - len(missing)} of {len(questions)} replies are there", flush=True)
        if missing:
            asyncio.run(self._ask(missing, dtype))

    async def _ask(self, questions: Sequence[str], dtype: str) -> None:
        models = self.file.with_suffix(".yaml")
        models.write_text(self.system.operator_file(dtype), encoding="utf-8")
        self._drop_half_a_line()
        async with in_process(models) as sdk:
            api, progress = Api(sdk, AT_ONCE), _Progress(self.system.name, len(questions))
            await api.together([self._one(api, question, progress) for question in questions])

    def _drop_half_a_line(self) -> None:
        text = self.file.read_text(encoding="utf-8") if self.file.is_file() else ""
        self.file.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")

    async def _one(self, api: Api, question: str, progress: _Progress) -> None:
        subject = Subject.model_validate(self.system.subject)
        reply = await api.chat(
            subject,
            subject.messages(question, self.shots),
            max_tokens=self.max_tokens,
            temperature=self.system.temperature,
            seed=zlib.crc32(question.encode()),  # each question its own noise, the same in every run
        )
        row = Kept(question, reply.text, reply.ended, self.max_tokens, self._asked)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
        self._kept[question] = row
        progress.one_more()


class _Progress:
    """A line whenever as many replies have come as are asked for at once."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count, self._done, self._began = name, count, 0, time.monotonic()

    def one_more(self) -> None:
        self._done += 1
        if self._done % AT_ONCE and self._done < self._count:
            return
        spent = time.monotonic() - self._began
        left = spent / self._done * (self._count - self._done)
        print(f"  {self._name}: {self._done} of {self._count} in {spent:.0f} s, about {left:.0f} s left", flush=True)
