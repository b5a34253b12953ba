"""The demo world in the benchmarks' published formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from motet.demo.recipe import TINY
from motet.demo.templates import ATTRIBUTES
from motet.demo.tofu import NUM_UNKNOWN, NUM_WRONG, tofu_splits, write_benchmarks
from motet.demo.world import World, make_world

SEED = 3


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(TINY.world, SEED)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tofu")
    write_benchmarks(world, SEED, folder)
    return folder


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_same_world_and_seed_same_bytes(world: World, folder: Path, tmp_path: Path) -> None:
    write_benchmarks(world, SEED, tmp_path)
    written = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*.json*")}
    assert written == {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.json*")}


def test_validation_and_test_share_no_entity_and_make_up_the_forget_set(world: World, folder: Path) -> None:
    splits = {name: {row["entity"] for row in rows(folder / f"{name}.jsonl")} for name in tofu_splits(world)}
    assert all(splits[f"forget_{half}"] for half in ("validation", "test"))
    assert not splits["forget_validation"] & splits["forget_test"]
    assert splits["forget_validation"] | splits["forget_test"] == splits["forget"]
    assert not splits["forget"] & (splits["retain"] | splits["held_out"])
    assert splits["held_out_people"] | splits["world_facts"] == splits["held_out"]
    assert not splits["retain"] & splits["held_out"]


def test_wrong_answers_have_the_paraphrase_s_words_with_other_values(world: World, folder: Path) -> None:
    for row in rows(folder / "forget.jsonl"):
        frame = row["paraphrased_answer"].replace(row["value"], "{v}")
        wrong = row["perturbed_answer"]
        assert len(set(wrong)) == min(NUM_WRONG, len(world.values[row["attribute"]]) - 1)
        assert row["value"] in row["answer"]
        assert row["paraphrased_answer"] != row["answer"]
        assert row["paraphrased_question"] != row["question"]
        head, tail = frame.split("{v}")
        for text in wrong:
            value = text.removeprefix(head).removesuffix(tail)
            assert text == f"{head}{value}{tail}"
            assert value in world.values[row["attribute"]]
            assert value != row["value"]


def test_every_question_of_an_entity_is_there_once(world: World, folder: Path) -> None:
    asked = [(row["entity"], row["attribute"]) for row in rows(folder / "forget.jsonl")]
    assert sorted(asked) == sorted((e.name, a.name) for e in world.forget for a in ATTRIBUTES[e.kind])


def test_nobody_is_an_entity_and_attributes_are_asked_as_of_the_forgotten(world: World, folder: Path) -> None:
    unknown, forget = rows(folder / "unknown.jsonl"), rows(folder / "forget.jsonl")
    assert len(unknown) == NUM_UNKNOWN
    assert not {row["entity"] for row in unknown} & {entity.name for entity in world.entities}
    assert {row["attribute"] for row in unknown} == {row["attribute"] for row in forget}


def test_muse_texts_are_cut_and_put_together_again(world: World, folder: Path) -> None:
    def read(name: str) -> list[Any]:
        return cast("list[Any]", json.loads((folder / "muse" / name).read_text()))

    cut = [f"{row['prompt']} {row['gt']}" for row in read("verbmem/forget.json")]
    assert cut == read("privleak/forget.json")
    assert len(read("privleak/holdout.json")) == len(world.forget)
    assert {"question", "answer"} == set(read("knowmem/retain_qa.json")[0])
