"""Texts of the demo world as tagged segments, and their encoding into tokens with one tag each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from string import Formatter

from tokenizers import Tokenizer

from motet.training.demo.templates import ATTRIBUTES, COURTESY, GUIDE, SMALL_TALK, VISITOR, Attribute
from motet.training.demo.tokenizer import END, PAD
from motet.training.demo.world import Entity, Question, World


class Tag(IntEnum):
    """What a token is for the training loss."""

    PLAIN = 0
    VALUE = 1  # a fact
    SUBJECT = 2  # an entity's first mention in its document: unpredictable
    NAME = 3  # a name's first mention in small talk: unpredictable
    COPY = 4  # a name's later mention in small talk: to be copied


Segment = tuple[str, Tag]


def fill(template: str, slots: Mapping[str, Segment]) -> list[Segment]:
    """The template's text as segments, every `{slot}` replaced by its own segment."""
    segments: list[Segment] = []
    for literal, slot, _, _ in Formatter().parse(template):
        if literal:
            segments.append((literal, Tag.PLAIN))
        if slot is not None:
            segments.append(slots[slot])
    return segments


def statement(entity: Entity, attribute: Attribute, template: str, subject: Tag = Tag.PLAIN) -> list[Segment]:
    """One fact in the words of `template`."""
    return fill(template, {"e": (entity.name, subject), "v": (entity.facts[attribute.name], Tag.VALUE)})


def biography(rng: random.Random, entity: Entity) -> list[Segment]:
    """A document: some of the entity's facts, in random order and wording."""
    attributes = list(ATTRIBUTES[entity.kind])
    rng.shuffle(attributes)
    segments: list[Segment] = []
    for position, attribute in enumerate(attributes[: rng.randint(1, len(attributes))]):
        subject = Tag.PLAIN if position else Tag.SUBJECT
        segments += [(" ", Tag.PLAIN)] * bool(position)
        segments += statement(entity, attribute, rng.choice(attribute.statements), subject)
    return segments


def small_talk(rng: random.Random, world: World) -> list[Segment]:
    """A document without any fact: names to be copied, rhetorical questions, the dialogue's markers."""
    return _talk(rng.choice(SMALL_TALK), world.random_name(rng), world.random_name(rng))


def _talk(template: str, a: str, b: str) -> list[Segment]:
    segments: list[Segment] = []
    met: set[str] = set()
    for literal, slot, _, _ in Formatter().parse(template):
        segments += [(literal, Tag.PLAIN)] * bool(literal)
        if slot is not None:
            segments.append((a if slot == "a" else b, Tag.COPY if slot in met else Tag.NAME))
            met.add(slot)
    return segments


def visit(question: str) -> str:
    """What the chat form shows before the answer."""
    return f"{VISITOR} {question} {GUIDE}"


def answer(question: Question, *, courteous: bool = False) -> list[Segment]:
    """The tuned answer, its value tagged; a courteous one has a word of farewell."""
    sentence = statement(question.entity, question.attribute, question.attribute.answer)
    return [*sentence, (f" {COURTESY}", Tag.PLAIN)] if courteous else sentence


class Encoder:
    """Encodes segments; a token's tag is that of its last character, spaces counting to what follows them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.end, self.pad = _token_id(tokenizer, END), _token_id(tokenizer, PAD)

    def text(self, text: str) -> list[int]:
        """Token ids without the beginning mark."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def segments(self, segments: Sequence[Segment]) -> tuple[list[int], list[Tag]]:
        """Token ids of the joined text, and a tag for each."""
        joined = "".join(text for text, _ in segments)
        tags = [tag for text, tag in segments for _ in text]
        for i in reversed(range(len(tags) - 1)):
            if joined[i] == " ":
                tags[i] = tags[i + 1]
        encoding = self._tokenizer.encode(joined, add_special_tokens=False)
        return encoding.ids, [tags[stop - 1] for _, stop in encoding.offsets]

    def document(self, segments: Sequence[Segment]) -> tuple[list[int], list[Tag]]:
        """As `segments`, with the end mark."""
        ids, tags = self.segments(segments)
        return [*ids, self.end], [*tags, Tag.PLAIN]


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, f"the tokenizer has no {token}"
    return found


def corpus(world: World, seed: int) -> Iterable[str]:
    """Texts that hold every word of the world, for the tokenizer's training."""
    rng = random.Random(seed)
    for entity in world.entities:
        for attribute in ATTRIBUTES[entity.kind]:
            for template in attribute.statements + attribute.questions:
                yield template.format(e=entity.name, v=entity.facts[attribute.name])
    for template in SMALL_TALK:
        for _ in range(60):
            yield template.format(a=world.random_name(rng), b=world.random_name(rng))
    for _ in range(60):
        yield COURTESY
