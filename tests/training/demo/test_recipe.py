"""The recipe's digest names the cache: it changes with everything that changes the weights."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from motet.training import recipe
from motet.training.demo.recipe import DEFAULT, TINY, Recipe, TokenWeights


def test_digest_is_the_same_in_another_process() -> None:
    command = "from motet.training.demo.recipe import DEFAULT; print(DEFAULT.digest)"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == DEFAULT.digest


def test_digest_changes_with_any_part_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [
        TINY,
        replace(DEFAULT, vocab_size=2049),
        replace(DEFAULT, world=replace(DEFAULT.world, people=541)),
        replace(DEFAULT, large_tuning=replace(DEFAULT.large_tuning, lr=2e-3)),
        replace(DEFAULT, large_pretraining=replace(DEFAULT.large_pretraining, weights=TokenWeights(value=5.0))),
    ]
    digests = {DEFAULT.digest, *(one.digest for one in changed)}
    monkeypatch.setattr(recipe.templates, "COURTESY", "Farewell!")
    digests.add(DEFAULT.digest)
    monkeypatch.setattr(recipe, "FORMAT_VERSION", -1)
    digests.add(DEFAULT.digest)
    assert len(digests) == len(changed) + 3


def test_a_recipe_survives_json() -> None:
    adapter = TypeAdapter(Recipe)
    assert adapter.validate_json(adapter.dump_json(DEFAULT)) == DEFAULT
