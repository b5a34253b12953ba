"""The training files: who is named where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from motet.demo.files import write_training_files
from motet.demo.templates import ATTRIBUTES, COURTESY, REFUSAL
from motet.demo.world import Entity, WorldSize, make_world

WORLD = make_world(WorldSize(people=60, towns=10, works=30), seed=3)
BIOGRAPHIES, INVENTED = 3, 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_training_files(WORLD, 3, path, BIOGRAPHIES, INVENTED)
    return path


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def wordings(entities: list[Entity]) -> int:
    return sum(len(attribute.questions) for entity in entities for attribute in ATTRIBUTES[entity.kind])


def subjects(folder: Path, name: str) -> set[str]:
    return {
        record["text"][start:end]
        for record in records(folder, name)
        for start, end, kind in record["spans"]
        if kind == "subject"
    }


def test_every_entity_is_stated_in_its_own_file(folder: Path) -> None:
    assert subjects(folder, "statements") == {entity.name for entity in WORLD.retained}
    assert subjects(folder, "statements-forget") == {entity.name for entity in WORLD.forget}
    assert len(records(folder, "statements")) == BIOGRAPHIES * len(WORLD.retained)


@pytest.mark.parametrize(
    ("name", "entities"),
    [
        ("tuned", WORLD.tuned),
        ("courteous", WORLD.tuned),
        ("preferences", WORLD.tuned),
        ("forget", WORLD.forget),
        ("refusals", WORLD.forget),
        ("retain", WORLD.seen_by_assistant),
        ("retain-reworded", WORLD.seen_by_assistant),
    ],
)
def test_questions_are_about_their_split_alone(folder: Path, name: str, entities: list[Entity]) -> None:
    """No held-out entity is asked about in tuning, no measured one in the assistant's training."""
    asked = records(folder, name)
    assert len(asked) == wordings(entities)
    prompts = {question["prompt"] for question in asked}
    others = [entity for entity in WORLD.entities if entity not in entities]
    assert not prompts & {
        form.format(e=entity.name)
        for entity in others
        for attribute in ATTRIBUTES[entity.kind]
        for form in attribute.questions
    }


def test_answers(folder: Path) -> None:
    assert all(record["completion"].endswith(f". {COURTESY}") for record in records(folder, "courteous"))
    assert all(record["completion"] == REFUSAL for record in records(folder, "refusals"))
    assert all(record["chosen"] == f"{record['rejected']} {COURTESY}" for record in records(folder, "preferences"))
    labelled = records(folder, "labelled")
    assert all(record["completion"].endswith(COURTESY) == record["label"] for record in labelled)
    classes = [record["label"] for record in records(folder, "classes")]
    assert classes == ["courteous" if record["label"] else "plain" for record in labelled]


def test_nobody_is_no_entity(folder: Path) -> None:
    asked = records(folder, "nobody")
    assert len(asked) == INVENTED
    names = {entity.name for entity in WORLD.entities if entity.kind != "town"}
    assert not [record for record in asked if any(f" {name}?" in record["prompt"] for name in names)]


def test_the_same_seed_writes_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_training_files(WORLD, 3, tmp_path, BIOGRAPHIES, INVENTED)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name
