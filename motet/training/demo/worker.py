"""One training process: `python -m motet.training.demo.worker`, driven by `family.build_family`.

Reads one JSON object from standard input (folder, and a list of members with their recipes' overrides) and writes
one JSON object per line: `{"member", "step", "loss"}` while training, `{"member", "seconds"}` when it is saved.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers.utils import logging


def main() -> None:
    """Trains the members asked for on one thread."""
    from motet.training.run.session import train_recipe

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for member, overrides in json.load(sys.stdin):
        started = time.monotonic()
        train_recipe(member, overrides, lambda step, loss, name=member: _tell(member=name, step=step, loss=loss))
        _tell(member=member, seconds=round(time.monotonic() - started, 1))


def _tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
