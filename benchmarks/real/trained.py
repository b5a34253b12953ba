"""Models that a stage trains, by the command that users type: resumed where they were left, skipped where finished."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from motet.experts.bundle import BUNDLE

RECIPES = Path(__file__).parent / "recipes"


def trained(recipe: str, output: Path, settings: Mapping[str, object], threads: int) -> Path:
    """`motet train RECIPE … output=OUTPUT`: first dry, which measures a step and says how long the run takes.

    Args:
        recipe: the name of a file beside this one's `recipes`.
        output: the folder of the result; a finished run in it is kept, an unfinished one goes on.
        settings: the recipe's fields, by dotted name.
        threads: of a step.

    Raises:
        SystemExit: the training failed.
    """
    if (output / BUNDLE).is_file():
        print(f"{output.name}: trained already", flush=True)
        return output
    overrides = [f"{name}={value}" for name, value in {**settings, "output": output}.items()]
    arguments = ["train", str(RECIPES / f"{recipe}.yaml"), *overrides, "--threads", str(threads)]
    resumed = (output / "run.json").is_file()
    if not resumed:
        _motet([*arguments, "--dry-run"])
    began = time.monotonic()
    _motet([*arguments, *["--resume"] * resumed])
    print(f"{output.name}: trained in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return output


def _motet(arguments: list[str]) -> None:
    print(f"$ motet {shlex.join(arguments)}", flush=True)
    if subprocess.run([sys.executable, "-m", "motet.cli", *arguments]).returncode:
        raise SystemExit(f"motet {arguments[0]} failed")
