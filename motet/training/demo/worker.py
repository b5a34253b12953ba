"""One training process: `python -m motet.training.demo.worker`, driven by `family.build_family`.

Reads one JSON object from standard input (recipe, seed, folder, names of the members to train in order) and writes
one JSON object per line: `{"member", "step", "loss"}` while training, `{"member", "seconds"}` when it is saved.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers.utils import logging

from motet.training.demo.members import MEMBERS, Workshop
from motet.training.demo.recipe import Recipe


def main() -> None:
    """Trains the members asked for on one thread."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    order = json.load(sys.stdin)
    recipe = TypeAdapter(Recipe).validate_python(order["recipe"])
    shop = Workshop(recipe, order["seed"], Path(order["folder"]))
    for name in order["members"]:
        started = time.monotonic()
        model = MEMBERS[name](shop, lambda step, loss, name=name: _tell(member=name, step=step, loss=loss))
        shop.save(model, name)
        _tell(member=name, seconds=round(time.monotonic() - started, 1))


def _tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
