"""One training process: `python -m motet.demo.worker`, driven by `family.build_family`.

Reads one JSON object from standard input (folder, and a list of members with their recipes' overrides) and writes
one JSON object per line: `{"member", "step", "loss"}` while training, `{"member", "seconds"}` when it is saved.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from motet.training.run.recipe_file import packaged_recipes, read_recipe
from motet.training.run.train import train


def main() -> None:
    """Trains the members asked for on one thread."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for member, overrides in json.load(sys.stdin):
        started = time.monotonic()
        _train(member, overrides)
        _tell(member=member, seconds=round(time.monotonic() - started, 1))


def _train(member: str, overrides: Mapping[str, Any]) -> None:
    packaged = str(packaged_recipes()[member])  # a file of the member's name in the working directory is not meant
    recipe, folder = read_recipe(packaged, [f"{name}={json.dumps(value)}" for name, value in overrides.items()])
    train(recipe, folder, progress=lambda metrics: _tell(member=member, step=metrics.step, loss=metrics.loss))


def _tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
