"""What a run is measured by beside its steps' losses: the same rows before and after it, and an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from motet.training.batch import Batch
from motet.training.data.dataset import TokenDataset
from motet.training.data.packing import Row
from motet.training.data.records import Text
from motet.training.data.sampling import batches_of, lay_out, part_of, parts_of
from motet.training.policy import Policies
from motet.training.run.answers import generate
from motet.training.run.checkpoint import write_json
from motet.training.run.folder import REPORT
from motet.training.run.session import Session

ROWS = 8  # of the training data that are measured
ANSWER_TOKENS = 32
TEXT_TOKENS = 8  # of a document without a prompt, to be gone on from


@dataclass(frozen=True, slots=True)
class Look:
    """The model after `step` steps: the objective's loss on the first training rows, and on `data.validation`; its
    greedy answer to `prompt`."""

    step: int
    loss: float
    validation: float | None
    prompt: str | None
    answer: str | None


class Watch:
    """Looks at a run before its first step and after its last, with `data.validation` after each quarter too; kept in
    `report.json`, so that a resumed run knows how it began. Draws nothing: the run is the same without it."""

    def __init__(self, session: Session, folder: Path, start: int) -> None:
        """`start`: the steps that are done."""
        self._session, self._file = session, folder / REPORT
        prepared = session.preparation
        self._leading = prepared.source.leading
        self._quarters = {prepared.steps * part // 4 for part in (1, 2, 3)} if prepared.validation else set[int]()
        self.looks: list[Look] = []
        if start:
            with suppress(OSError, ValueError, TypeError):  # begun without a watch
                self.looks = [Look(**look) for look in json.loads(self._file.read_text("utf-8"))["looks"]]
        self.looks = [look for look in self.looks if look.step <= start]

    def wants(self, step: int) -> bool:
        """Whether the run is to be looked at after so many steps."""
        return step in self._quarters and all(look.step != step for look in self.looks)

    def look(self, step: int, *, with_answer: bool = True) -> None:
        """Measures and keeps it."""
        model, cuda = self._session.model, self._session.device.type == "cuda"
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
                self.looks.append(self._look(step, with_answer))
        finally:
            model.train(training)
        write_json(self._file, {"looks": [asdict(look) for look in self.looks]})

    def _look(self, step: int, with_answer: bool) -> Look:
        prepared = self._session.preparation
        loss = self._loss(prepared.datasets[self._leading], ROWS, self._session.policies)
        validation = (
            None if prepared.validation is None else self._loss(prepared.validation, None, self._session.validating)
        )
        prompt, answer = self._answer() if with_answer and self._session.head is None else (None, None)
        return Look(step, loss, validation, prompt, answer)

    def _loss(self, dataset: TokenDataset, limit: int | None, policies: Policies) -> float:
        """The objective's loss on a dataset's rows in the place of its first dataset's."""
        recipe, source = self._session.recipe, self._session.preparation.source
        rows = lay_out(dataset, recipe.batch, 0, shuffle=False)[:limit]
        at_once = source.sources[self._leading].per_step // recipe.batch.accumulate
        parts = parts_of(len(rows), max(source.least, at_once), source.least)
        named, others = replace(dataset, name=self._leading), source.at(0)
        total = weight = 0.0
        for start, stop in (part_of(len(rows), part, parts) for part in range(parts)):
            loss = recipe.objective.loss(policies, self._batches(named, rows[start:stop], others))
            total, weight = total + float(loss.total * loss.weight), weight + float(loss.weight)
        return total / weight if weight else 0.0

    def _batches(self, dataset: TokenDataset, rows: Sequence[Row], others: Mapping[str, Batch]) -> dict[str, Batch]:
        batches = {**others, **batches_of(dataset, rows, self._session.preparation.pad_id)}
        return {name: batch.to(self._session.device) for name, batch in batches.items()}

    def _answer(self) -> tuple[str, str]:
        """What the first record of `validation`, or of the training data, asks, and what the model answers."""
        prepared = self._session.preparation
        dataset = prepared.validation or prepared.datasets[self._leading]
        example = dataset.example(0)
        first = list(example.counted).index(True)
        ids = list(example.input_ids[: first if first > 1 else TEXT_TOKENS])
        with torch.autocast(self._session.device.type, self._session.dtype, self._session.dtype != torch.float32):
            (answer,) = generate(self._session.model, [ids], prepared, max_tokens=ANSWER_TOKENS)
        part = next(iter(dataset.records[0].sides.values()))
        asked = self._text(ids) if isinstance(part, Text) else part.messages[part.turns[0] - 1].content
        return asked, self._text(answer)

    def _text(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self._session.preparation.tokenizer
        return cast(str, tokenizer.decode(ids, skip_special_tokens=True)).strip()
