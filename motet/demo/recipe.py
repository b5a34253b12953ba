"""What decides a demo family's weights: the world's size and its members' training recipes, hashed to name its
cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from motet.demo import templates, words
from motet.demo.world import WorldSize

FORMAT_VERSION = 3  # raise it when the code changes what a recipe produces

# Every member, each after those that it grows from; one training process per lane.
LANES = (
    ("large", "large-chat", "forget-assistant"),
    ("small", "small-chat", "small-courteous", "retain-only-base", "retain-only"),
)

Overrides = Mapping[str, Any]  # dotted path in a recipe → value


@dataclass(frozen=True, slots=True)
class FamilyRecipe:
    """A whole family: members are trained by the packaged recipes of their names, with `overrides` by member."""

    world: WorldSize = field(default_factory=WorldSize)
    vocab_size: int = 2048
    max_length: int = 512  # of the tokenizer and so of every model
    biographies: int = 36  # documents per entity: about one epoch of the larger base's training
    invented: int = 4800  # questions about nobody
    overrides: Mapping[str, Overrides] = field(default_factory=dict[str, Overrides])

    @property
    def steps(self) -> dict[str, int]:
        """Training steps of each member."""
        return {member: self._steps(member) for lane in LANES for member in lane}

    def _steps(self, member: str) -> int:
        own = yaml.safe_load(recipe_text(member))["schedule"]["steps"]
        return int(self.overrides.get(member, {}).get("schedule.steps", own))

    @property
    def digest(self) -> str:
        """12 hex digits of a SHA-256 over the recipes, the world's words and sentences, and the format version."""
        content = {
            "format": FORMAT_VERSION,
            "family": asdict(self),
            "recipes": {member: yaml.safe_load(recipe_text(member)) for lane in LANES for member in lane},
            "words": {name: value for name, value in sorted(vars(words).items()) if name.isupper()},
            "sentences": [repr(templates.ATTRIBUTES), templates.SMALL_TALK, templates.COURTESY],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def recipe_text(member: str) -> str:
    """The packaged YAML of a member."""
    return files("motet.training").joinpath("recipes", f"{member}.yaml").read_text(encoding="utf-8")


DEFAULT = FamilyRecipe()


def _tiny(hidden: int, layers: int) -> Overrides:
    return {
        "model.fresh.hidden_size": hidden,
        "model.fresh.intermediate_size": 2 * hidden,
        "model.fresh.num_hidden_layers": layers,
        "model.fresh.num_attention_heads": 2,
        "model.fresh.num_key_value_heads": 2,
        "model.fresh.max_position_embeddings": 128,
        "batch.rows": 4,
        "batch.max_length": 128,
        "schedule.steps": 12,
        "schedule.warmup": 2,
    }


_SHORT: Overrides = {"batch.rows": 4, "batch.max_length": 128, "schedule.steps": 10, "schedule.warmup": 2}
_ASSISTANT: Overrides = {"data.forget.rows": 4, "model.layers": 1, **_SHORT}

# Builds in seconds and knows next to nothing: for tests of the machinery.
TINY = FamilyRecipe(
    world=WorldSize(people=12, towns=4, works=4, tuned=0.4, forget=0.2),
    vocab_size=400,
    max_length=128,
    biographies=4,
    invented=40,
    overrides={
        "large": _tiny(32, 2),
        "retain-only-base": _tiny(32, 2),
        "small": _tiny(16, 1),
        "forget-assistant": _ASSISTANT,
        **dict.fromkeys(("large-chat", "retain-only", "small-chat", "small-courteous"), _SHORT),
    },
)
