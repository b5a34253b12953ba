"""The models that are served. Only here is code of the server's own: all else can attack other versions of it, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from motet.demo.family import build_family
from motet.demo.recipe import TINY

# the narrowest heads that vLLM's attention for CPUs has
FAMILY = replace(
    TINY,
    overrides={
        member: {**changed, "model.fresh.head_dim": 32} if "model.fresh.hidden_size" in changed else changed
        for member, changed in TINY.overrides.items()
    },
)


def family_file(folder: Path | None) -> Path:
    """The operator's file of a folder, or of a tiny demo family that both engines serve, which is built once."""
    return (folder or build_family(0, None, FAMILY)) / "models.yaml"
