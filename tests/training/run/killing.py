"""Runs that are killed: `python -m tests.training.run.killing`, driven by test_resume.py.

Reads `{"root", "output", "kills", "seed", "recipes": {name: sections}}` from standard input. Every recipe is trained
once in peace, and once in processes that get SIGKILL at random moments, each resuming what the one before left. Writes
`{name: {"peace": hash, "killed": hash, "killed_at": [step, ...], "metrics": [step, ...]}}`. Processes are forked from
this one, which has imported torch but never used it, so that a kill costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from motet.training.recipe import Recipe
from motet.training.run.train import train
from tests.training.run.workshop import recipe

MOST_STEPS = 9  # that a process may do before it is killed


def main() -> None:
    order = json.load(sys.stdin)
    rng = random.Random(order["seed"])
    root, output = Path(order["root"]), Path(order["output"])
    result = {
        name: _compare(root, output / name, sections, order["kills"], rng)
        for name, sections in order["recipes"].items()
    }
    print(json.dumps(result))


def _compare(root: Path, output: Path, sections: dict[str, Any], kills: int, rng: random.Random) -> dict[str, Any]:
    peace, killed = recipe(output / "peace", **sections), recipe(output / "killed", **sections)
    assert _wait(_fork(lambda: _train(peace, root))) == 0
    steps = [_kill_once(killed, root, rng) for _ in range(kills)]
    assert _wait(_fork(lambda: _train(killed, root))) == 0
    lines = (killed.output / "metrics.jsonl").read_text().splitlines()
    return {
        "peace": _hash(peace.output),
        "killed": _hash(killed.output),
        "killed_at": steps,
        "metrics": [json.loads(line)["step"] for line in lines],
    }


def _train(chosen: Recipe, root: Path) -> None:
    train(chosen, root=root, existing="resume")


def _kill_once(chosen: Recipe, root: Path, rng: random.Random) -> int:
    """Starts or resumes the run and kills it after a random number of steps, at a random moment of the next one."""
    metrics = chosen.output / "metrics.jsonl"
    process = _fork(lambda: _train(chosen, root))
    target = rng.randrange(1, MOST_STEPS)
    seen, before = 0, -1
    while seen < target and os.waitpid(process, os.WNOHANG) == (0, 0):
        size = metrics.stat().st_size if metrics.exists() else 0
        seen += size > before >= 0  # resuming cuts the file back once
        before = size
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(process, signal.SIGKILL)
    assert _wait(process) == -signal.SIGKILL
    return len(metrics.read_bytes().splitlines())


def _fork(work: Callable[[], None]) -> int:
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _hash(output: Path) -> str:
    files = sorted(output.glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
