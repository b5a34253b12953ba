"""Which recipe and data a run is of: what decides its weights, as hashes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from motet.experts.fingerprints import content_hash, file_hash, weights_fingerprint
from motet.training.data.dataset import TokenDataset
from motet.training.recipe import VALIDATION, Checkpoint, Recipe
from motet.training.run.sources import locate

# Fields that say where results go, what they are called and what memory their making takes, not what they are.
INDIFFERENT = frozenset({"name", "output", "root", "checkpoints", "logging", "expert", "gradient_checkpointing"})


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide the weights. Of models and data, what counts is their content."""
    fields = recipe.model_dump(mode="json", exclude=set(INDIFFERENT))
    fields["data"].pop(VALIDATION, None)
    return fields


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 in hex of the fields that decide the weights."""
    return content_hash(decisive(recipe))


def data_hash(datasets: Mapping[str, TokenDataset]) -> str:
    """SHA-256 in hex over what training reads of each dataset: tokens, masks, weights, labels."""
    prints = {name: dataset.fingerprint for name, dataset in datasets.items()}
    return content_hash(prints)


def models_hash(recipe: Recipe, root: Path) -> str:
    """SHA-256 in hex over the fingerprints of the weights that the run starts from, and of the members' (of a GGUF file
    its whole content)."""
    sources = {"model": recipe.model, **recipe.members}
    local = {name: Path(locate(s.path, root)) for name, s in sources.items() if isinstance(s, Checkpoint)}
    present = {name: place for name, place in local.items() if place.exists()}
    prints = {name: weights_fingerprint(p) if p.is_dir() else file_hash(p) for name, p in present.items()}
    return content_hash(prints)


def changes(before: object, after: object, name: str = "") -> list[str]:
    """`dotted.name: old → new` for every leaf that differs."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{name}: {before} → {after}"]
    left, right = cast("dict[str, object]", before), cast("dict[str, object]", after)
    keys = dict.fromkeys([*left, *right])
    return [line for key in keys for line in changes(left.get(key), right.get(key), _below(name, key))]


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
