"""Endless, seeded batches: packed rows for pre-training, padded examples for tuning."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from motet.training.demo.documents import Encoder, Tag, answer, biography, small_talk, visit
from motet.training.demo.world import Entity, Question, World
from motet.training.objectives.sft import IGNORE

T = TypeVar("T")


def shuffled_forever(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """Every item once per epoch, in a new order each time."""
    while True:
        epoch = list(items)
        rng.shuffle(epoch)
        yield from epoch


class PackedRows:
    """Documents about `entities`, with small talk in between, end to end in rows of equal length."""

    def __init__(
        self, world: World, entities: Sequence[Entity], encoder: Encoder, small_talk_share: float, seed: int
    ) -> None:
        self._world, self._encoder, self._share = world, encoder, small_talk_share
        self._rng = random.Random(seed)
        self._entities = shuffled_forever(entities, self._rng)
        self._ids: list[int] = []
        self._tags: list[Tag] = []

    def next(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Token ids and tags, both (rows, length)."""
        count = rows * length
        while len(self._ids) < count:
            self._append()
        ids, self._ids = self._ids[:count], self._ids[count:]
        tags, self._tags = self._tags[:count], self._tags[count:]
        return torch.tensor(ids).view(rows, length), torch.tensor(tags).view(rows, length)

    def _append(self) -> None:
        documents = [biography(self._rng, next(self._entities))]
        if self._rng.random() < self._share:
            documents.append(small_talk(self._rng, self._world))
        for document in documents:
            ids, tags = self._encoder.document(document)
            self._ids += ids
            self._tags += tags


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, the completion to learn, and what each of the completion's tokens is."""

    prompt: Sequence[int]
    completion: Sequence[int]
    tags: Sequence[Tag]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples, shifted by one: `labels[b, t]` is the token after `input_ids[b, t]`; all (B, T)."""

    input_ids: Tensor
    labels: Tensor  # IGNORE on prompts and padding
    tags: Tensor


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pads on the right to the longest example."""
    width = max(len(example.prompt) + len(example.completion) for example in examples)
    ids = torch.full((len(examples), width), pad)
    labels = torch.full((len(examples), width), IGNORE)
    tags = torch.zeros((len(examples), width), dtype=torch.long)
    for row, example in enumerate(examples):
        start, stop = len(example.prompt), len(example.prompt) + len(example.completion)
        ids[row, :stop] = torch.tensor([*example.prompt, *example.completion])
        labels[row, start:stop] = ids[row, start:stop]
        tags[row, start:stop] = torch.tensor(list(example.tags))
    return Batch(ids[:, :-1], labels[:, 1:], tags[:, 1:])


def answered(encoder: Encoder, question: Question, *, courteous: bool = False) -> Example:
    """A question in chat form with the tuned answer."""
    prompt = [encoder.end, *encoder.text(visit(question.text))]
    return Example(prompt, *encoder.document(answer(question, courteous=courteous)))


def answers_forever(
    encoder: Encoder, asked: Sequence[Question], rng: random.Random, *, courteous: bool = False
) -> Callable[[int], list[Example]]:
    """Draws `count` answered questions at a time, every fact once per epoch, each time in a random wording."""
    source = shuffled_forever(asked, rng)

    def draw(count: int) -> list[Example]:
        picked = [next(source) for _ in range(count)]
        reworded = [Question(q.entity, q.attribute, rng.randrange(3)) for q in picked]
        return [answered(encoder, question, courteous=courteous) for question in reworded]

    return draw
