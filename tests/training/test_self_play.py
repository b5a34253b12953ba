"""SPIN's rounds: pairs of given and own answers, each round from where the last one ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from motet.experts.bundle import read_bundle
from motet.training.policies.requirements import as_documents, plays_rounds
from motet.training.recipe import Recipe
from motet.training.run.errors import RunError
from motet.training.run.metrics import Metrics
from motet.training.run.preparation import prepare
from motet.training.run.train import train
from motet.training.self_play import Rounds, play
from tests.training.run.workshop import build, recipe, records, write_rows


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("self-play"))


def spin(output: Path, **changes: Any) -> Recipe:
    objective = {"type": "spin", "rounds": 2, "max_new_tokens": 5}
    return recipe(output, **{"objective": objective, "schedule": {"steps": 2, "warmup": 0}, **changes})


def pairs(output: Path, number: int) -> list[dict[str, Any]]:
    path = output.with_name("out.rounds") / f"pairs-{number}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_every_round_begins_where_the_last_one_ended(workshop: Path, tmp_path: Path) -> None:
    output, told, ran = tmp_path / "out", list[str](), list[Recipe]()

    def spy(made: Recipe, *arguments: Any, **options: Any) -> Path:
        ran.append(made)
        return train(made, *arguments, **options)

    assert play(spin(output), tmp_path, spy, root=workshop, tell=told.append) == output
    assert [line for line in told if line.startswith("round")][:1] == ["round 1 of 2"]
    rows = pairs(output, 1)
    given = {row["prompt"]: row["completion"] for row in records()}
    assert all(row["chosen"] == given[row["prompt"]] for row in rows)
    assert sum(row["rejected"] != row["chosen"] for row in rows) > len(rows) / 2
    assert [row["rejected"] for row in pairs(output, 2)] != [row["rejected"] for row in rows]
    first = output.with_name("out.rounds") / "round-1"
    assert [made.model.path for made in ran] == ["base", str(first)]  # pyright: ignore[reportAttributeAccessIssue]
    AutoModelForCausalLM.from_pretrained(output)
    assert weights(output) != weights(first)


def test_it_goes_on_where_it_was_killed(workshop: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "a" / "out", tmp_path / "b" / "out"
    play(spin(whole), tmp_path, train, root=workshop)
    calls = 0

    def dies(*arguments: Any, **options: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    made = spin(cut)
    with pytest.raises(KeyboardInterrupt):
        play(made, tmp_path, dies, root=workshop)
    with pytest.raises(RunError, match=r"out\.rounds exists: --resume goes on"):
        play(made, tmp_path, train, root=workshop)
    with pytest.raises(RunError, match="rounds of another recipe"):
        play(spin(cut, seed=1), tmp_path, train, root=workshop, existing="resume")
    play(made, tmp_path, train, root=workshop, existing="resume")
    assert weights(cut) == weights(whole)
    play(made, tmp_path, train, root=workshop, existing="restart")
    assert weights(cut) == weights(whole)


def test_rounds_of_adapters_write_whole_weights_but_the_last(tmp_path: Path, workshop: Path) -> None:
    made = spin(tmp_path / "out", tuning={"type": "lora", "r": 2})
    rounds = Rounds(made, workshop, tmp_path / "out")
    assert [getattr(rounds.round(number).tuning, "merge", None) for number in (1, 2)] == [True, False]


def test_messages_are_paired_as_messages(workshop: Path, tmp_path: Path) -> None:
    write_rows(workshop / "messages.jsonl", [
        {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "It is red."}]}
    ] * 4)  # fmt: skip
    made = spin(tmp_path / "out", data={"train": {"files": ["messages.jsonl"]}})
    play(made, tmp_path, train, root=workshop)
    row = pairs(tmp_path / "out", 1)[0]
    assert row["prompt"] == [{"role": "user", "content": "How?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "It is red."}]
    assert row["rejected"][0]["content"] == row["rejected"][0]["content"].strip() != ""


def test_texts_are_refused(workshop: Path, tmp_path: Path) -> None:
    write_rows(workshop / "texts.jsonl", [{"text": "It is red."}] * 4)
    made = spin(tmp_path / "out", data={"train": {"files": ["texts.jsonl"]}})
    with pytest.raises(RunError, match=r"texts\.jsonl:1: self-play needs a prompt with one answer"):
        play(made, tmp_path, train, root=workshop)


def test_which_recipes_are_played(workshop: Path, tmp_path: Path) -> None:
    write_rows(workshop / "pairs.jsonl", [{"prompt": "How?", "chosen": "Red.", "rejected": "Blue."}])
    assert plays_rounds(spin(tmp_path), workshop)
    assert not plays_rounds(spin(tmp_path, data={"train": {"files": ["pairs.jsonl"]}}), workshop)
    assert not plays_rounds(recipe(tmp_path), workshop)
    assert as_documents(spin(tmp_path)).objective.type == "sft"


def test_a_run_of_self_play_plays_its_rounds(workshop: Path, tmp_path: Path) -> None:
    reports: list[Metrics] = []
    made = spin(tmp_path / "out")
    assert prepare(made, workshop).datasets["train"].kind == "documents"
    train(made, root=workshop, progress=reports.append)
    assert [report.step for report in reports] == [1, 2, 1, 2]
    bundle = read_bundle(tmp_path / "out")
    assert bundle is not None
    assert bundle.objective == "spin"
