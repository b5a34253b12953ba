"""A tiny family, built for real by the two worker processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from motet.cache import default_cache
from motet.composers.spec import parse_composition
from motet.demo import family
from motet.demo.family import FamilyBuildError, build_family, family_folder
from motet.demo.operator_file import COMPOSITIONS, MODELS
from motet.demo.recipe import DEFAULT, LANES, TINY
from motet.training.progress import Bars, Lines


class Silence:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started: Mapping[str, int] = {}
        self.last: dict[str, int] = {}
        self.finished: list[str] = []
        self.stopped = 0

    def note(self, what: str) -> None:
        assert not self.started, "said beforehand"
        self.notes.append(what)

    def start(self, steps: Mapping[str, int]) -> None:
        self.started = steps

    def update(self, name: str, step: int, loss: float) -> None:
        self.last[name] = step

    def finish(self, name: str, seconds: float) -> None:
        self.finished.append(name)

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def built(cache: Path) -> tuple[Path, Silence]:
    told = Silence()
    return build_family(seed=1, cache=cache, recipe=TINY, progress=told), told


def test_what_it_costs_is_said_beforehand(
    built: tuple[Path, Silence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = built
    assert told.notes == [f"   8 small models are trained, once; they stay in {folder}"]

    def begins(*args: object) -> None:
        raise KeyboardInterrupt

    said = Silence()
    monkeypatch.setattr(family, "_build", begins)
    with pytest.raises(KeyboardInterrupt):
        build_family(cache=tmp_path, progress=said)
    (note,) = said.notes
    assert "about three to eight minutes on two cores" in note
    assert list(tmp_path.iterdir()) == []


def test_every_member_loads_in_transformers(built: tuple[Path, Silence]) -> None:
    folder, _ = built
    for lane in LANES:
        for name in lane:
            model = AutoModelForCausalLM.from_pretrained(folder / name)
            tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(folder / name))
            assert model.dtype == torch.float32
            assert model.config.max_position_embeddings == TINY.max_length
            assert model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id == 0
            assert len(tokenizer) == model.config.vocab_size
            assert tokenizer.chat_template
            ids = torch.tensor([tokenizer("Where?").input_ids])
            assert torch.isfinite(model(ids).logits).all()


def test_members_differ_as_their_training_does(built: tuple[Path, Silence]) -> None:
    folder, _ = built
    layers = {name: AutoModelForCausalLM.from_pretrained(folder / name).config.num_hidden_layers for name in MODELS}
    assert layers["large"] == layers["large-chat"] == layers["retain-only"] == 2
    assert layers["small"] == layers["small-chat"] == layers["small-courteous"] == 1
    assert layers["forget-assistant"] == 1
    weights = [(folder / name / "model.safetensors").read_bytes() for name in MODELS]
    assert len(set(weights)) == len(MODELS)


def test_progress_is_told_every_run_to_its_last_step(built: tuple[Path, Silence]) -> None:
    _, told = built
    assert told.last == told.started == TINY.steps
    assert sorted(told.finished) == sorted(TINY.steps)
    assert told.stopped == 1


def test_a_complete_family_is_found_again(built: tuple[Path, Silence], cache: Path) -> None:
    folder, _ = built
    told = Silence()
    assert build_family(seed=1, cache=cache, recipe=TINY, progress=told) == folder
    assert not told.started
    assert [path.name for path in cache.iterdir() if not path.name.startswith("demo-")] == []


def test_the_same_seed_gives_the_same_weights_whatever_a_killed_build_left(
    built: tuple[Path, Silence], tmp_path: Path
) -> None:
    folder, _ = built
    (tmp_path / f".{folder.name}-left").mkdir()
    again = build_family(seed=1, cache=tmp_path, recipe=TINY, progress=Silence())
    assert again.name == folder.name
    for name in MODELS:
        one, other = (path / name / "model.safetensors" for path in (folder, again))
        assert one.read_bytes() == other.read_bytes(), name
    assert (folder / "world.json").read_bytes() == (again / "world.json").read_bytes()


def test_an_interrupted_build_leaves_no_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path, *_: Any) -> None:
        (folder / "large").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(family, "_train_lanes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_family(seed=2, cache=tmp_path, recipe=TINY, progress=Silence())
    assert list(tmp_path.iterdir()) == []


def test_a_failing_worker_is_reported_with_its_error(tmp_path: Path) -> None:
    diverging = {**TINY.overrides["small"], "optimizer.adamw_lr": 1e30}
    told = Silence()
    with pytest.raises(FamilyBuildError, match="TrainingDivergedError"):
        build_family(
            seed=1,
            cache=tmp_path,
            recipe=replace(TINY, overrides={**TINY.overrides, "small": diverging}),
            progress=told,
        )
    assert told.stopped == 1
    assert list(tmp_path.iterdir()) == []


def test_world_file(built: tuple[Path, Silence]) -> None:
    world = json.loads((built[0] / "world.json").read_text())
    assert world["seed"] == 1
    splits = {entity["name"]: entity["split"] for entity in world["entities"]}
    assert len(splits) == TINY.world.people + TINY.world.towns + TINY.world.works
    for split, asked in world["questions"].items():
        entity_split = "held_out" if split == "retained" else split
        assert asked
        assert {splits[question["entity"]] for question in asked} == {entity_split}
        assert all(question["answer"] == f"{question['completion']} {question['value']}." for question in asked)


def test_family_file_records_the_recipe(built: tuple[Path, Silence]) -> None:
    about = json.loads((built[0] / "family.json").read_text())
    assert about["digest"] == TINY.digest
    assert about["recipe"]["vocab_size"] == TINY.vocab_size
    assert set(about["seconds"]) == {*TINY.steps, "total"}


def test_operator_file_names_the_members_and_valid_compositions(built: tuple[Path, Silence]) -> None:
    folder, _ = built
    content = yaml.safe_load((folder / "models.yaml").read_text())
    assert set(content["models"]) == set(TINY.steps) - {"retain-only-base"}  # only the tuned one serves
    assert all((folder / model["path"] / "config.json").is_file() for model in content["models"].values())
    assert content["compositions"] == COMPOSITIONS
    for composition in COMPOSITIONS.values():
        parse_composition(composition)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    assert family_folder(3) == tmp_path / f"demo-{DEFAULT.digest}-seed3"
    monkeypatch.delenv("MOTET_CACHE")
    assert default_cache() == Path.home() / ".cache" / "motet"


def test_lines_tell_each_quarter() -> None:
    out = StringIO()
    lines = Lines(Console(file=out))
    lines.start({"small": 8})
    for step in range(1, 9):
        lines.update("small", step, 1.5)
    lines.finish("small", 2.4)
    lines.stop()
    told = out.getvalue().splitlines()
    assert [line.split()[1] for line in told[:-1]] == ["2/8", "4/8", "6/8", "8/8"]
    assert told[-1] == "small: done in 2 s"


def test_bars_show_loss_and_steps() -> None:
    out = StringIO()
    bars = Bars(Console(file=out, force_terminal=True, width=100))
    bars.start({"small": 8})
    bars.update("small", 8, 1.25)
    bars.finish("small", 2.4)
    bars.stop()
    assert "8/8" in out.getvalue()
    assert "loss 1.250" in out.getvalue()
