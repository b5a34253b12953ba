"""The recipe's digest names the cache: it changes with everything that changes the weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from motet.demo import recipe
from motet.demo.recipe import DEFAULT, LANES, TINY, recipe_text


def test_digest_is_the_same_in_another_process() -> None:
    command = "from motet.demo.recipe import DEFAULT; print(DEFAULT.digest)"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == DEFAULT.digest


def test_digest_changes_with_any_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [
        TINY,
        replace(DEFAULT, vocab_size=2049),
        replace(DEFAULT, world=replace(DEFAULT.world, people=541)),
        replace(DEFAULT, overrides={"large-chat": {"optimizer.lr": 2e-3}}),
        replace(DEFAULT, biographies=35),
    ]
    digests = {DEFAULT.digest, *(one.digest for one in changed)}
    monkeypatch.setattr(recipe.templates, "COURTESY", "Farewell!")
    digests.add(DEFAULT.digest)
    monkeypatch.setattr(recipe, "FORMAT_VERSION", -1)
    digests.add(DEFAULT.digest)
    assert len(digests) == len(changed) + 3


def test_digest_changes_with_a_members_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = DEFAULT.digest
    monkeypatch.setattr(recipe, "recipe_text", _with_another_length)
    assert DEFAULT.digest != before


def _with_another_length(member: str) -> str:
    return recipe_text(member).replace("steps: 640", "steps: 641")


def test_every_member_grows_from_earlier_ones_of_its_lane() -> None:
    for lane in LANES:
        for position, member in enumerate(lane):
            source = yaml.safe_load(recipe_text(member))["model"]
            assert "fresh" in source or source["path"] in lane[:position]


def test_steps_are_the_overridden_ones() -> None:
    assert TINY.steps["large"] == 12
    assert DEFAULT.steps["large"] == yaml.safe_load(recipe_text("large"))["schedule"]["steps"]
