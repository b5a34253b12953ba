"""Speed and memory of a LoRA run on a real checkpoint, now and at an earlier commit, in one interleaved run.

    python -m benchmarks.real_training --model FOLDER --records FILE.jsonl --before COMMIT \\
        --out benchmarks/results/real-training.json

Both trees read the same recipe: packed rows of prompts and completions, answers alone counted. Every figure comes from
a process of its own; the trees take turns. Tokens are those of the documents; seconds those of a step after
the first; activations are the largest resident memory of a step beyond what stood before it, the weights read in.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROWS, LENGTH = 4, 640


def recipe(model: Path, records: Path, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "model": {"path": str(model)},
        "tuning": {"type": "lora", "r": 16},
        "objective": {"type": "sft"},
        "data": {"train": {"files": [str(records)]}},
        "batch": {"rows": ROWS, "max_length": LENGTH, "packing": "fit"},
        "optimizer": {"type": "adamw", "lr": 1e-4},
        "schedule": {"steps": 100},
    }


def measure(model: Path, records: Path, steps: int) -> dict[str, Any]:
    """The figures of this process's own tree."""
    from motet.training.recipe import Recipe
    from motet.training.run.session import Session

    with TemporaryDirectory() as place:
        session = Session(Recipe.model_validate(recipe(model, records, Path(place) / "out")))
        for parameter in (p for module in session.models for p in module.parameters()):
            parameter.detach().flatten()[::512].float().sum()  # reads mapped weights in
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        losses, seconds = [session.loop.step(0).loss.item()], list[float]()
        counted, busy = session.tokens, time.process_time()
        for number in range(1, 1 + steps):
            began = time.perf_counter()
            losses.append(session.loop.step(number).loss.item())
            seconds.append(time.perf_counter() - began)
        busy = time.process_time() - busy
        return {
            "losses": losses,
            "step_seconds": statistics.median(seconds),
            "tokens_per_second": (session.tokens - counted) / sum(seconds),
            "tokens_per_processor_second": (session.tokens - counted) / busy,
            "activations_gib": resident("VmHWM") - before,
            "before_gib": before,
        }


def resident(field: str) -> float:
    """GiB of this process: VmRSS now, VmHWM at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / (1 << 20)


@contextmanager
def checked_out(commit: str) -> Generator[Path]:
    """A work tree of a commit, gone afterwards."""
    with TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(tree), commit], check=True, capture_output=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], check=True)


def in_tree(tree: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--worker", "--steps", str(options.steps)]
    command += ["--model", str(options.model), "--records", str(options.records)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{tree} failed:\n{done.stderr[-4000:]}")
    print(tree.name, done.stdout.splitlines()[-1], file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.common import median_of_ratios

    figures: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with checked_out(options.before) as old:
        for _ in range(options.rounds):
            for name, tree in (("before", old), ("now", Path(__file__).resolve().parents[1])):
                figures[name].append(in_tree(tree, options))

    def ratio(key: str) -> float:
        return median_of_ratios([now[key] for now in figures["now"]], [old[key] for old in figures["before"]])

    return {
        **figures,
        "speed_ratio": ratio("tokens_per_second"),
        "processor_ratio": ratio("tokens_per_processor_second"),  # other work on the machine disturbs it less
        "memory_ratio": ratio("activations_gib"),
        "aims": {"speed_ratio": 3.0, "memory_ratio": 0.25},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True, help="JSONL with prompt and completion")
    parser.add_argument("--before", default="8e63b60")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(measure(options.model, options.records, options.steps)))
        return
    from benchmarks.common import report

    report("real_training", {"model": options.model.name, **compare(options)}, options.out)


if __name__ == "__main__":
    main()
