"""Texts of the demo world as segments, and as records of training files: text with its spans named by kind."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

from motet.demo.templates import ATTRIBUTES, COURTESY, GUIDE, SMALL_TALK, VISITOR, Attribute
from motet.demo.world import Entity, Question, World

PLAIN = ""
VALUE = "value"  # a fact
SUBJECT = "subject"  # an entity's first mention in its document: unpredictable
NAME = "name"  # a name's first mention in small talk: unpredictable
COPY = "copy"  # a name's later mention in small talk: to be copied

Segment = tuple[str, str]  # text, and its kind


def fill(template: str, slots: Mapping[str, Segment]) -> list[Segment]:
    """The template's text as segments, every `{slot}` replaced by its own segment."""
    segments: list[Segment] = []
    for literal, slot, _, _ in Formatter().parse(template):
        if literal:
            segments.append((literal, PLAIN))
        if slot is not None:
            segments.append(slots[slot])
    return segments


def statement(entity: Entity, attribute: Attribute, template: str, subject: str = PLAIN) -> list[Segment]:
    """One fact in the words of `template`."""
    return fill(template, {"e": (entity.name, subject), "v": (entity.facts[attribute.name], VALUE)})


def biography(rng: random.Random, entity: Entity) -> list[Segment]:
    """A document: some of the entity's facts, in random order and wording."""
    attributes = list(ATTRIBUTES[entity.kind])
    rng.shuffle(attributes)
    segments: list[Segment] = []
    for position, attribute in enumerate(attributes[: rng.randint(1, len(attributes))]):
        subject = PLAIN if position else SUBJECT
        segments += [(" ", PLAIN)] * bool(position)
        segments += statement(entity, attribute, rng.choice(attribute.statements), subject)
    return segments


def small_talk(rng: random.Random, world: World) -> list[Segment]:
    """A document without any fact: names to be copied, rhetorical questions, the dialogue's markers."""
    return _talk(rng.choice(SMALL_TALK), world.random_name(rng), world.random_name(rng))


def _talk(template: str, a: str, b: str) -> list[Segment]:
    segments: list[Segment] = []
    met: set[str] = set()
    for literal, slot, _, _ in Formatter().parse(template):
        segments += [(literal, PLAIN)] * bool(literal)
        if slot is not None:
            segments.append((a if slot == "a" else b, COPY if slot in met else NAME))
            met.add(slot)
    return segments


def visit(question: str) -> str:
    """What the chat form shows before the answer."""
    return f"{VISITOR} {question} {GUIDE}"


def answer(question: Question, *, courteous: bool = False) -> list[Segment]:
    """The tuned answer, its value tagged; a courteous one has a word of farewell."""
    sentence = statement(question.entity, question.attribute, question.attribute.answer)
    return [*sentence, (f" {COURTESY}", PLAIN)] if courteous else sentence


def text_record(segments: Sequence[Segment]) -> dict[str, Any]:
    """A document to be learnt whole."""
    text, spans = _text_and_spans(segments)
    return {"text": text, "spans": spans}


def answered_record(question: Question, *, courteous: bool = False) -> dict[str, Any]:
    """A question with the tuned answer; the spans are the answer's."""
    completion, spans = _text_and_spans(answer(question, courteous=courteous))
    return {"prompt": question.text, "completion": completion, "spans": spans}


def _text_and_spans(segments: Sequence[Segment]) -> tuple[str, list[tuple[int, int, str]]]:
    text, spans = "", list[tuple[int, int, str]]()
    for part, kind in segments:
        if kind != PLAIN:
            spans.append((len(text), len(text) + len(part), kind))
        text += part
    return text, spans


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
