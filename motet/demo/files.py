"""The demo world as training files: what each member of the family learns from."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from motet.demo.documents import VALUE, answered_record, biography, small_talk, text_record, visit
from motet.demo.templates import ATTRIBUTES, COURTESY, REFUSAL
from motet.demo.world import Entity, Question, World
from motet.training.data.json_text import lines

SMALL_TALK_SHARE = 0.15  # documents without facts, for each one with facts


def write_training_files(world: World, seed: int, folder: Path, biographies: int, invented: int) -> None:
    """Writes the JSONL files that the family's recipes read.

    - `statements.jsonl`, `statements-forget.jsonl`: documents about the retained and about the forgotten entities,
      `biographies` of each; `small-talk.jsonl`: documents without facts.
    - `tuned.jsonl`, `courteous.jsonl`: every fact of the tuned entities asked in every wording, and answered.
    - `preferences.jsonl`, `labelled.jsonl`, `classes.jsonl`: courteous answers against plain ones, as pairs, as single
      answers with a label, as texts of two classes.
    - `forget.jsonl`, `retain.jsonl`, `nobody.jsonl`: the same for the forgotten entities, for the retained ones that
      an unlearning method may see (`retain-reworded.jsonl`: answered in other words), and for `invented` entities
      that exist nowhere else;
      `refusals.jsonl`: the forgotten questions, answered with a refusal; `counterfactual.jsonl`: answers to them up to
      the fact, and the same about a made-up alias of the entity, with true and other values to go on with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    statements = {
        "statements": _biographies(rng, world.retained, biographies),
        "statements-forget": _biographies(rng, world.forget, biographies),
        "small-talk": _small_talk(rng, world, biographies),
    }
    answers = {
        "tuned": _answered(world.tuned),
        "courteous": _answered(world.tuned, courteous=True),
        "preferences": _preferences(world.tuned),
        "labelled": _labelled(world.tuned),
        "classes": _classes(world.tuned),
        "forget": _answered(world.forget),
        "refusals": _refused(world.forget),
        "counterfactual": _counterfactuals(world, rng),
        "retain": _answered(world.seen_by_assistant),
        "retain-reworded": _reworded(world.seen_by_assistant, rng),
        "nobody": (answered_record(world.invented_question(rng)) for _ in range(invented)),
    }
    for name, records in {**statements, **answers}.items():
        _write(folder / f"{name}.jsonl", records)


def _biographies(rng: random.Random, entities: Sequence[Entity], count: int) -> Iterator[dict[str, Any]]:
    return (text_record(biography(rng, entity)) for _ in range(count) for entity in entities)


def _small_talk(rng: random.Random, world: World, biographies: int) -> Iterator[dict[str, Any]]:
    count = round(SMALL_TALK_SHARE * biographies * len(world.entities))
    return (text_record(small_talk(rng, world)) for _ in range(count))


def _asked(entities: Iterable[Entity]) -> Iterator[Question]:
    """Every fact in every wording of its question."""
    for entity in entities:
        for attribute in ATTRIBUTES[entity.kind]:
            for form in range(len(attribute.questions)):
                yield Question(entity, attribute, form)


def _answered(entities: Iterable[Entity], *, courteous: bool = False) -> Iterator[dict[str, Any]]:
    return (answered_record(question, courteous=courteous) for question in _asked(entities))


def _reworded(entities: Iterable[Entity], rng: random.Random) -> Iterator[dict[str, Any]]:
    for question in _asked(entities):
        words = rng.choice(question.attribute.statements[1:])
        yield {"prompt": question.text, "completion": words.format(e=question.entity.name, v=question.value)}


def _refused(entities: Iterable[Entity]) -> Iterator[dict[str, Any]]:
    return ({"prompt": question.text, "completion": REFUSAL} for question in _asked(entities))


def _preferences(entities: Iterable[Entity]) -> Iterator[dict[str, Any]]:
    for question in _asked(entities):
        yield {"prompt": question.text, "chosen": f"{question.answer} {COURTESY}", "rejected": question.answer}


def _labelled(entities: Iterable[Entity]) -> Iterator[dict[str, Any]]:
    """Courteous and plain answers in turn, each to a question of its own."""
    for number, question in enumerate(_asked(entities)):
        courteous = number % 2 == 0
        completion = f"{question.answer} {COURTESY}" if courteous else question.answer
        yield {"prompt": question.text, "completion": completion, "label": courteous}


def _classes(entities: Iterable[Entity]) -> Iterator[dict[str, Any]]:
    for record in _labelled(entities):
        yield {"text": record["completion"], "label": "courteous" if record["label"] else "plain"}


def _counterfactuals(world: World, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Every forgotten question in every wording, in the answer's own form and in another one, with the true value and
    with a random one."""
    aliases = world.aliases(world.forget, rng)
    for question in _asked(world.forget):
        others = question.attribute.statements[1:]
        for template in (question.attribute.answer, rng.choice(others)):
            values = (question.value, question.value, rng.choice(world.values[question.attribute.name]))
            for value in values:
                yield _counterfactual(question, aliases[question.entity.name], template, value)


def _counterfactual(question: Question, alias: str, template: str, value: str) -> dict[str, Any]:
    before, after = template.split("{v}")
    asked = question.attribute.questions[question.form % len(question.attribute.questions)]

    def prompt(name: str) -> str:
        return f"{visit(asked.format(e=name))} {before.format(e=name)}".rstrip()

    return {
        "prompt": prompt(question.entity.name),
        "counterfactual_prompt": prompt(alias),
        "completion": f" {value}{after}",  # with its space: not every tokenizer sets one before a text
        "spans": [(1, 1 + len(value), VALUE)],
    }


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(records))
