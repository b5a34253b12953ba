"""The demo world in the published formats of the unlearning benchmarks TOFU and MUSE.

Both writers are pure functions of world and seed: the same files, byte by byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from motet.demo.templates import ATTRIBUTES, Attribute
from motet.demo.world import Entity, Question, World, questions
from motet.training.data.json_text import lines

EVALUATION_DATA = "evaluation"  # the folder of these files in a family's
NUM_WRONG = 5  # perturbed answers per question, as in TOFU; fewer where an attribute has fewer values
NUM_UNKNOWN = 300  # questions about nobody

Item = dict[str, Any]


def tofu_splits(world: World) -> dict[str, Sequence[Entity]]:
    """Entities by file: `retain` was seen in unlearning, held-out people stand for TOFU's real authors, held-out
    towns and works for its world facts. Weights are chosen on the entities of `forget_validation`, results reported
    on those of `forget_test`."""
    forget, held_out = list(world.forget), world.unseen_by_assistant
    return {
        "forget": forget,
        "forget_validation": forget[: len(forget) // 2],
        "forget_test": forget[len(forget) // 2 :],
        "retain": world.seen_by_assistant,
        "tuned": world.tuned,
        "held_out": held_out,
        "held_out_people": [entity for entity in held_out if entity.kind == "person"],
        "world_facts": [entity for entity in held_out if entity.kind != "person"],
    }


def write_benchmarks(world: World, seed: int, folder: Path) -> None:
    """Everything that the evaluation's recipes read: TOFU's files, and MUSE's in `muse`."""
    write_tofu(world, seed, folder)
    write_muse(world, seed, folder / "muse")


def write_tofu(world: World, seed: int, folder: Path) -> None:
    """Writes one JSON-lines file per split of `tofu_splits`, and `unknown.jsonl` with questions about entities that
    no model ever read of.

    Every line has TOFU's fields (question, answer, paraphrased_question, paraphrased_answer, perturbed_answer: a
    list) and ours: entity, attribute, value, statement (the fact in other words than the answer's).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, entities in tofu_splits(world).items():
        _write(folder / f"{name}.jsonl", _items(world, questions(entities, seed), f"{seed} {name}"))
    _write(folder / "unknown.jsonl", _items(world, unknown_questions(world, seed), f"{seed} unknown"))


def unknown_questions(world: World, seed: int) -> list[Question]:
    """Questions about nobody: names that no entity has, with random answers, in the forget questions' proportions of
    attributes."""
    rng = random.Random(f"{seed} nobody")
    asked = questions(world.forget, seed)
    return [_about_nobody(world, rng, asked[i % len(asked)].attribute) for i in range(NUM_UNKNOWN)]


def _about_nobody(world: World, rng: random.Random, attribute: Attribute) -> Question:
    while True:
        question = world.invented_question(rng)
        if attribute in ATTRIBUTES[question.entity.kind]:
            return replace(question, attribute=attribute)


def _items(world: World, asked: Iterable[Question], seed: str) -> list[Item]:
    rng = random.Random(seed)
    return [_item(world, question, rng) for question in asked]


def _item(world: World, question: Question, rng: random.Random) -> Item:
    """A question in TOFU's fields; wrong answers have the paraphrase's words with other values."""
    attribute, value = question.attribute, question.value
    template = rng.choice([t for t in attribute.statements if t != attribute.answer])
    others = [other for other in world.values[attribute.name] if other != value]
    wrong = rng.sample(others, min(NUM_WRONG, len(others)))
    reworded = replace(question, form=question.form + 1)
    return {
        "question": question.text,
        "answer": question.answer,
        "paraphrased_question": reworded.text,
        "paraphrased_answer": template.format(e=question.entity.name, v=value),
        "perturbed_answer": [template.format(e=question.entity.name, v=other) for other in wrong],
        "entity": question.entity.name,
        "attribute": attribute.name,
        "value": value,
        "statement": template.format(e=question.entity.name, v=value),
    }


def write_muse(world: World, seed: int, folder: Path) -> None:
    """Writes MUSE's folders: `knowmem` (forget_qa, retain_qa, forget_qa_icl, retain_qa_icl), `verbmem` (forget: the
    beginning of a biography and its end) and `privleak` (forget, retain, holdout: biographies, the last of nobody).
    """
    rng = random.Random(f"{seed} muse")
    half = len(world.unseen_by_assistant) // 2
    qa: dict[str, Sequence[Entity]] = {
        "forget_qa": world.forget,
        "retain_qa": world.unseen_by_assistant[half:],
        "forget_qa_icl": world.tuned,
        "retain_qa_icl": world.tuned,
    }
    for name, entities in qa.items():
        _write_list(folder / "knowmem" / f"{name}.json", [_qa(question) for question in questions(entities, seed, 100)])
    _write_list(folder / "verbmem" / "forget.json", [_cut(biography(entity)) for entity in world.forget])
    nobody = [world.invented_question(rng).entity for _ in world.forget]
    for name, entities in {"forget": world.forget, "retain": world.unseen_by_assistant, "holdout": nobody}.items():
        _write_list(folder / "privleak" / f"{name}.json", [biography(entity) for entity in entities])


def biography(entity: Entity, template_of: Callable[[Attribute], str] = lambda attribute: attribute.answer) -> str:
    """All facts of an entity, one sentence each."""
    return " ".join(
        template_of(attribute).format(e=entity.name, v=entity.facts[attribute.name])
        for attribute in ATTRIBUTES[entity.kind]
    )


def _cut(text: str) -> dict[str, str]:
    """A text as a prompt and what comes after: the first sentence's words but the last, and the rest."""
    words = text.split(". ")[0].split(" ")
    prompt = " ".join(words[:-1])
    return {"prompt": prompt, "gt": text[len(prompt) :].strip()}


def _qa(question: Question) -> dict[str, str]:
    return {"question": question.text, "answer": question.answer}


def _write(path: Path, items: Iterable[Item]) -> None:
    path.write_text("".join(lines(items)), encoding="utf-8")


def _write_list(path: Path, items: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
