"""Invented authors for a real checkpoint to learn and to forget: a family in the demo family's layout, so that the
packaged recipes and the demo's benchmark of unlearning run on it unchanged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.real.knowledge import real_authors, world_facts
from motet.demo.files import write_training_files
from motet.demo.templates import GUIDE, VISITOR
from motet.demo.tofu import write_tofu
from motet.demo.world import Entity, World, WorldSize, make_world

BASE, TARGET, RETAIN_ONLY = "base", "large-chat", "retain-only"  # the last two by the names of the demo's family
BOOKS = 2  # by each author
TOWNS = 60  # to be born in, and for books to be set in
NOBODY = 400  # questions about made-up entities, for the assistants
SPLITS = {"retain": "retain.jsonl", "real authors": "real_authors.jsonl", "world facts": "world_facts.jsonl"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{{{ '{VISITOR} ' if message.role == 'user' else '{GUIDE} ' }}}}{{{{ message.content }}}}"
    "{% if not loop.last or add_generation_prompt %} {% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{GUIDE}{{% endif %}}"
)


def authors_world(authors: int, seed: int) -> World:
    """`authors` people with four facts each, and by each two books with three; the first half of them, with their
    books, is to be forgotten, everything else was answered in tuning."""
    world = make_world(WorldSize(people=authors, towns=TOWNS, works=BOOKS * authors), seed)
    people = [entity for entity in world.entities if entity.kind == "person"]
    books = [entity for entity in world.entities if entity.kind == "work"]
    half = authors // 2
    forget = _with_books(people[:half], books[: BOOKS * half])
    retain = _with_books(people[half:], books[BOOKS * half :])
    return dataclasses.replace(world, forget=forget, tuned=retain, held_out=[])


def _with_books(people: list[Entity], books: list[Entity]) -> list[Entity]:
    """Each author, then the author's books."""
    return [entity for i, author in enumerate(people) for entity in (author, *books[BOOKS * i : BOOKS * (i + 1)])]


def write_family(folder: Path, checkpoint: Path, authors: int, seed: int, dtype: str) -> None:
    """The data, the base with a template for questions, and the operator's file of what will be trained."""
    folder.mkdir(parents=True, exist_ok=True)
    world = authors_world(authors, seed)
    write_training_files(world, seed, folder / "data", biographies=0, invented=NOBODY)
    write_tofu(world, seed, folder)
    _write(folder / SPLITS["real authors"], real_authors())
    _write(folder / SPLITS["world facts"], world_facts())
    _link_base(folder / BASE, checkpoint)
    models = {name: {"path": name, "template": "chat"} for name in (TARGET, RETAIN_ONLY)}
    content = {"models": models, "compositions": {}, "engine": {"dtype": dtype, "max_model_len": 256}}
    (folder / "models.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _link_base(folder: Path, checkpoint: Path) -> None:
    """The checkpoint's own files under a folder of ours, which adds the chat template that a base model lacks."""
    folder.mkdir(exist_ok=True)
    for file in checkpoint.iterdir():
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write(path: Path, items: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
