"""One process of a stage: `python -m benchmarks.gpu.child PROGRAM --seconds N NAME…` prints a JSON line per result."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

from benchmarks.gpu.stages import Budget, Line

Program = Callable[[Sequence[str], Budget, bool], Iterator[Line]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    budget = Budget(options.seconds)
    import torch

    lines = cast("Program", importlib.import_module(f"benchmarks.gpu.{options.program}").lines)
    with torch.inference_mode():
        for line in lines(options.names, budget, options.tiny):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
