"""Where experiments are made: the demo family with what is trained on it, or a real checkpoint; asked over HTTP, in
this process, on the embedded engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Coroutine, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml

from benchmarks.lab import Lab
from motet.demo.tofu import EVALUATION_DATA
from motet.evaluation.asking import Api
from motet.evaluation.backend import in_process
from motet.evaluation.measures.answers import is_exact
from motet.training.data.files import Row, read_rows
from motet.training.data.json_text import lines

Json = dict[str, Any]
Target = str | Mapping[str, Any]  # a model, or a composition

ANSWER = 24  # tokens: longer than any answer of the demo world
AT_ONCE = {"demo": 32, "real": 8}
REAL_ENGINE: Json = {"dtype": "float32", "kv_cache_gib": 0.5, "max_running": 8, "max_model_len": 512}


class Bench:
    """Attributes:
    lab: the demo family, and a folder for what is trained on it.
    models: the folder of real checkpoints, if there is one.
    limit: questions of a split, at most.
        factor: a file of FACTOR, if there is one.
    """

    def __init__(self, lab: Lab, models: Path | None, limit: int, factor: Path | None = None) -> None:
        self.lab, self.models, self.limit, self.factor = lab, models, limit, factor

    @cached_property
    def _world(self) -> Json:
        return json.loads((self.lab.family / "world.json").read_text(encoding="utf-8"))

    @cached_property
    def entities(self) -> dict[str, Json]:
        """Of the demo world, by name: kind, split, facts."""
        return {entity["name"]: entity for entity in self._world["entities"]}

    @property
    def courtesy(self) -> str:
        """What courteous answers end with."""
        return self._world["courtesy"]

    def questions(self, split: str) -> list[Json]:
        """Of `world.json`: question, answer, completion (the answer's words before the value), value, entity."""
        return self._world["questions"][split][: self.limit]

    def records(self, name: str, *, folder: str = EVALUATION_DATA) -> list[Json]:
        """The lines of one of the family's data files."""
        found: list[Json] = []
        for row in read_rows(self.lab.family / folder / f"{name}.jsonl"):
            assert isinstance(row, Row), row
            found.append(row.values)
        return found

    def write(self, name: str, records: Sequence[Json]) -> Path:
        """A data file to train on."""
        file = self.lab.folder / f"{name}.jsonl"
        file.write_text("".join(lines(records)), encoding="utf-8")
        return file

    def ask(self, path: str, asked: Mapping[str, Sequence[Json]]) -> dict[str, list[Json]]:
        """The answers to all bodies, in order, by the demo family."""
        named = [[body.get("model"), body.get("composition")] for bodies in asked.values() for body in bodies]
        file = self.lab.folder / "models.yaml"
        content = self.lab.operator_file({"asked": [part for parts in named for part in parts if part is not None]})
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return asyncio.run(_answers(file, path, asked, AT_ONCE["demo"]))

    def ask_real(self, name: str, path: str, asked: Mapping[str, Sequence[Json]]) -> dict[str, list[Json]]:
        """The same of the checkpoint `name`, which requests call `model`. In float32: answers of one batch are those of
        another."""
        assert self.models is not None, "experiments on real checkpoints are not begun without them"
        folder = (self.models / name).resolve()
        template = "chat" if (folder / "chat_template.jinja").is_file() else "plain"
        file = self.lab.folder / "real.yaml"
        content = {"models": {"model": {"path": str(folder), "template": template}}, "engine": REAL_ENGINE}
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return asyncio.run(_answers(file, path, asked, AT_ONCE["real"]))


async def _answers(models: Path, path: str, asked: Mapping[str, Sequence[Json]], at_once: int) -> dict[str, list[Json]]:
    async with in_process(models) as sdk:
        calls = [
            cast("Coroutine[Any, Any, Json]", sdk.post(path, body=body, cast_to=object))
            for bodies in asked.values()
            for body in bodies
        ]
        found = iter(await Api(sdk, at_once).together(calls))
    return {name: [next(found) for _ in bodies] for name, bodies in asked.items()}


def _target(target: Target) -> Json:
    return {"model": target} if isinstance(target, str) else {"composition": dict(target)}


def chat(target: Target, question: str, **fields: Any) -> Json:
    """A body of `/chat/completions`; greedy."""
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "temperature": 0.0, "max_tokens": ANSWER, **_target(target), **fields}


def complete(target: Target, prompt: str, **fields: Any) -> Json:
    """A body of `/completions`; greedy."""
    return {"prompt": prompt, "temperature": 0.0, "max_tokens": ANSWER, **_target(target), **fields}


def scored(target: Target, continuations: Sequence[str], **reading: Any) -> Json:
    """A body of `/score`: `reading` is a prompt or messages."""
    return {"continuations": list(continuations), **_target(target), **reading}


def text_of(answer: Json) -> str:
    """What a choice says, whichever endpoint it comes from."""
    choice = answer["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"] or "").strip()


def ended(answer: Json) -> bool:
    """By itself, not cut at `max_tokens`."""
    return answer["choices"][0]["finish_reason"] == "stop"


def trace_of(answer: Json) -> list[Json]:
    return answer["choices"][0]["motet"]["trace"]


def confidence(answer: Json) -> float:
    """The probability of a whole chat answer."""
    return math.exp(sum(token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]))


def logprobs(answer: Json) -> list[float]:
    """Of each continuation that was scored."""
    return [entry["logprob"] for entry in answer["data"]]


def exact(answers: Sequence[Json], questions: Sequence[Json], ending: str = "") -> list[float]:
    """1 where an answer is the tuned one (and `ending`) and ends there."""
    return [
        float(is_exact(text_of(answer), f"{question['answer']}{ending}", ended=ended(answer)))
        for answer, question in zip(answers, questions, strict=True)
    ]
