"""All that needs a GPU, in one run of at most nine minutes: `make gpu`, or

    python -m benchmarks.gpu --out FOLDER     # one CUDA device; torch ≥ 2.11 with its Triton, and transformers
    python -m benchmarks.gpu --tiny           # every stage on the CPU, in Triton's interpreter: nothing is measured

1. correctness: the kernels of `motet/kernels/triton`, compiled, against the float64 oracle (`correctness`).
2. bandwidth: decoding of plain, masked and filtered rows against a copy and eager torch (`bandwidth`).
3. steps: a composed step with CUDA graphs and without, for 8B + 1B + 1B and 32B + 3B + 3B (`steps`).

Every stage has its own seconds and processes; one that fails costs the others nothing. The folder then holds a CSV per
table, `gpu.json` with hardware, versions and the summary, and `log.txt`; all of them are written as results come, so a
run that is cut off leaves what it had. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch

from benchmarks.common import recorded
from benchmarks.gpu import correctness
from benchmarks.gpu.stages import Budget, Line, Outcome, Stage, run_stage
from benchmarks.gpu.summary import Tables, shown, summary

SECONDS = 525.0  # of all stages together: nine minutes less what starts and ends the run
FULL = (
    Stage("correctness", "correctness", 165, tuple((name,) for name in correctness.CHECKS)),
    Stage("bandwidth", "bandwidth", 135, (("all",),)),
    Stage("steps, 8b", "steps", 95, (("8b",),)),
    Stage("steps, 32b", "steps", 130, (("32b",),)),
)
TINY = (  # a minute in all; far more of each on a machine that others use
    Stage("correctness", "correctness", 240, correctness.SMALL),
    Stage("bandwidth", "bandwidth", 120, (("all",),)),
    Stage("steps", "steps", 120, (("tiny",),)),
)
PROCESS = (sys.executable, "-m", "benchmarks.gpu.child")


def environment_of(stage: Stage, tiny: bool) -> dict[str, str]:
    """Processes beside one another share the cores. Triton reads its interpreter's switch when it is imported."""
    found = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(stage.parts)))}
    if tiny:
        return {**found, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    found.pop("TRITON_INTERPRET", None)
    return found


def run(folder: Path, stages: Sequence[Stage], command: Sequence[str], tiny: bool) -> str:
    """Runs the stages one after another. Returns the last line."""
    folder.mkdir(parents=True, exist_ok=True)
    tables, outcomes, budget = Tables(folder), dict[str, Outcome](), Budget(SECONDS)
    last = ""

    def take(line: Line) -> None:
        text = shown(line)
        tables.take(line)
        print(text, flush=True)

    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        for stage in stages:
            seconds = min(stage.seconds, budget.left)
            print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
            outcomes[stage.name] = run_stage(stage, command, environment_of(stage, tiny), seconds, log, take)
            print(f"{stage.name}: {asdict(outcomes[stage.name])}", flush=True)
            last = recorded("gpu", _results(tables, outcomes, tiny), folder / "gpu.json")
    return last


def _results(tables: Tables, outcomes: Mapping[str, Outcome], tiny: bool) -> dict[str, Any]:
    stages = {name: asdict(outcome) for name, outcome in outcomes.items()}
    return {"measures": not tiny, "stages": stages, **summary(tables)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results (a temporary one otherwise)")
    parser.add_argument("--tiny", action="store_true", help="every stage on the CPU: it shows that they run")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device here; --tiny runs every stage on the CPU")
    command = [*PROCESS, "--tiny"] if options.tiny else list(PROCESS)
    with TemporaryDirectory() as temporary:
        folder: Path = options.out or Path(temporary)
        print(run(folder, TINY if options.tiny else FULL, command, options.tiny))


if __name__ == "__main__":
    main()
