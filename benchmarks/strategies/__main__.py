"""One table: for each strategy the effect that its paper claims, in kind, or that it does not show here.

    python -m benchmarks.strategies --out benchmarks/results/strategies.csv
    python -m benchmarks.strategies --models FOLDER --factor FILE --out benchmarks/results/strategies.csv
    python -m benchmarks.strategies --only dynamic routed

The demo family of a seed is built where it is missing and needed. FOLDER holds gemma3-270m and qwen-0.5b (Hugging
Face folders), FILE is FACTOR's data/expert_factor.csv (github.com/AI21Labs/factor); without them, rows that need them
say so. What is trained and found is kept in the work folder as it comes, and not done again. With --only, other rows
of the table stay as they are. Strengths are the defaults, which are the papers', or those of the paper for that data;
nothing was chosen by these figures.

A row is `shown` where the 95 % bootstrap interval of the difference lies on the claimed side, `miss` where it lies on
the other one, `not shown` where it holds both. What a strategy is said to keep may fall by the margin in its row.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import report
from benchmarks.lab import Lab
from benchmarks.strategies import cited, contexts, ensembles, factor, forgetting, proxies, routing, topics
from benchmarks.strategies.bench import Bench
from benchmarks.strategies.file import read, write
from benchmarks.strategies.finding import Finding
from benchmarks.strategies.table import Experiment, absent, rows
from motet.composers.strategies import STRATEGIES
from motet.demo.family import build_family, family_folder

ROOMS = (cited, proxies, topics, ensembles, routing, forgetting, contexts, factor)
EXPERIMENTS: dict[str, Experiment] = {
    name: experiment
    for strategy in STRATEGIES
    for room in ROOMS
    for name, experiment in room.EXPERIMENTS.items()
    if experiment.strategy == strategy
}


def found_by(name: str, experiment: Experiment, bench: Bench, *, run: bool = True) -> list[Finding]:
    """What an experiment finds, or found before. `run`: whether it may be made now."""
    if experiment.cites is not None:
        return experiment.run(bench)
    if not bench.lab.has(f"found-{name}"):
        if not run:
            return [absent("the experiment was not made")]
        if experiment.real and bench.models is None:
            return [absent("needs real checkpoints: --models FOLDER")]
        if experiment.texts and bench.factor is None:
            return [absent("needs FACTOR's texts: --factor FILE")]
    began = time.monotonic()
    kept = bench.lab.kept(f"found-{name}", lambda: [asdict(finding) for finding in experiment.run(bench)])
    print(f"  {name}: {time.monotonic() - began:.0f} s", flush=True)
    return [Finding.of(row) for row in kept]


def _show(name: str, findings: Sequence[Finding]) -> None:
    for one in findings:
        print(
            f"{name}: {one.claim}: {one.measure} ({one.wanted}): {one.value} against {one.baseline}: {one.verdict}",
            flush=True,
        )


def measure(bench: Bench, wanted: Sequence[str], out: Path, *, run: bool = True) -> dict[str, list[Finding]]:
    """Writes the table after every experiment; rows of experiments that are not wanted stay as they are in the file."""
    found: dict[str, list[Finding]] = {}
    order = [_of(name) for name in EXPERIMENTS]
    anew = [_of(name) for name in wanted]
    before = read(out) if out.is_file() else []
    kept = [row for row in before if _key(row) in order and _key(row) not in anew]
    for name in wanted:
        found[name] = found_by(name, EXPERIMENTS[name], bench, run=run)
        _show(name, found[name])
        write(out, sorted([*kept, *rows(found, EXPERIMENTS)], key=lambda row: order.index(_key(row))))
    return found


def _of(name: str) -> tuple[str, str]:
    """What the rows of an experiment are known by."""
    return EXPERIMENTS[name].strategy, EXPERIMENTS[name].command(name)


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    """What a row is known by."""
    return row["strategy"], row["command"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strategies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, help="the folder of real checkpoints")
    parser.add_argument("--factor", type=Path, help="a file of FACTOR")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="experiments")
    parser.add_argument("--kept", action="store_true", help="makes no experiment: the table of those made before")
    parser.add_argument("--seed", type=int, default=0, help="of the demo family")
    parser.add_argument("--limit", type=int, default=200, help="questions of a split, at most")
    parser.add_argument("--work", type=Path, default=Path("out/strategies"), help="where what is done is kept")
    parser.add_argument("--out", type=Path, help="the table (in the work folder otherwise)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.work / f"seed{options.seed}-limit{options.limit}"
    folder.mkdir(parents=True, exist_ok=True)
    on_demo = not options.kept and any(
        not EXPERIMENTS[name].real and EXPERIMENTS[name].cites is None for name in options.only
    )
    family = build_family(options.seed) if on_demo else family_folder(options.seed)
    bench = Bench(Lab(family, folder), options.models, options.limit, options.factor)
    out = options.out or folder / "strategies.csv"
    measure(bench, options.only, out, run=not options.kept)
    verdicts = dict(Counter(row["verdict"] for row in read(out)))
    results = {"seed": options.seed, "limit": options.limit, "verdicts": verdicts}
    report("strategies", results, out.with_suffix(".json"))


if __name__ == "__main__":
    main()
