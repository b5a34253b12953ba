"""How long others wait while long prompts are read: steps of the embedded engine on a real checkpoint.

    python -m benchmarks.latency --model qwen2.5-coder-0.5b --against ../older --out benchmarks/results/latency.json

Three scenes, each in a process of its own, this version and another checkout of Motet (`--against`) in turn:

- `beside`: 16 requests decode; a prompt of 4,000 tokens arrives, and short requests (24 tokens, of which one token of
  answer is wanted) while it is read. Inter-token latency of the 16 is the time of a step.
- `behind`: nobody decodes; a short request arrives behind four prompts of 4,000 tokens.
- `alone`: one prompt of 4,000 tokens has the machine for itself: what fairness costs.

An ordinary step is one in which the 16 (or one request) decode and nothing is read, the median of 20 in the same
process. A short request arrives in the middle of a step. The engine is stepped here, without server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch

from motet.composers.plan import single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, load_member
from motet.engines.torch.choice import Choice

LONG, SHORT, DECODING = 4000, 24, 16
ORDINARY_STEPS = 20
BETWEEN = 12  # steps between two short requests
PATIENCE = 20.0  # seconds; who waits longer is reported as waiting so long


class Scene:
    """An engine over one model, stepped and timed."""

    def __init__(self, folder: str) -> None:
        member = load_member("model", folder)
        self.vocab = member.vocab_size
        self.core = EngineCore({"model": member})
        self._random = torch.Generator().manual_seed(0)

    def ask(self, length: int, max_tokens: int) -> Choice:
        """A request of random tokens, of which nothing is cached."""
        drawn = torch.randint(1000, self.vocab - 1000, (length,), generator=self._random)
        ids = cast("list[int]", drawn.tolist())
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        group = self.core.group(GenerationRequest("latency", single("model"), (tuple(ids),), sampling))
        self.core.add(group)
        return group.choices[0]

    def step(self) -> float:
        began = time.perf_counter()
        self.core.step()
        return time.perf_counter() - began

    def ordinary(self, rows: int) -> float:
        """Starts requests that decode for long; the median of their steps."""
        choices = [self.ask(60 + row, 2000) for row in range(rows)]
        while not all(choice.is_decoding for choice in choices):
            self.step()
        return statistics.median(self.step() for _ in range(ORDINARY_STEPS))

    def first_token(self) -> tuple[float, int]:
        """Seconds, and begun steps, until a short request that arrives in the middle of a step has its token."""
        waited = self.step() / 2
        choice, steps = self.ask(SHORT, 1), 0
        while not choice.num_generated and waited < PATIENCE:
            waited += self.step()
            steps += 1
        return waited, steps

    def drop(self, choices: Sequence[Choice]) -> None:
        self.core.drop(choices)


def beside(scene: Scene) -> dict[str, Any]:
    ordinary = scene.ordinary(DECODING)
    long = scene.ask(LONG, 1)
    began = time.perf_counter()
    times: list[float] = []
    firsts: list[float] = []
    short, waited = None, 0.0
    while not long.finished:
        times.append(scene.step())
        if short is not None:
            waited += times[-1]
            if short.finished:
                firsts.append(waited)
                short = None
        elif len(times) % BETWEEN == 0:
            short, waited = scene.ask(SHORT, 1), times[-1] / 2
    if short is not None:
        firsts.append(waited)
    return {
        "ordinary_ms": 1e3 * ordinary,
        "steps": len(times),
        "latency_p50_over_ordinary": statistics.median(times) / ordinary,
        "latency_p99_over_ordinary": percentile(times, 0.99) / ordinary,
        "latency_max_over_ordinary": max(times) / ordinary,
        "short_first_token_p50_over_ordinary": statistics.median(firsts) / ordinary,
        "short_first_token_max_over_ordinary": max(firsts) / ordinary,
        "long_first_token_s": time.perf_counter() - began,
    }


def behind(scene: Scene) -> dict[str, Any]:
    ordinary = scene.ordinary(1)
    scene.drop(list(scene.core.scheduler.running))
    for _ in range(4):
        scene.ask(LONG, 1)
    for _ in range(4):
        scene.step()
    waited, steps = scene.first_token()
    return {
        "ordinary_ms": 1e3 * ordinary,
        "short_first_token_ms": 1e3 * waited,
        "short_first_token_over_ordinary": waited / ordinary,
        "short_steps": steps,
    }


def alone(scene: Scene) -> dict[str, Any]:
    scene.ordinary(1)
    scene.drop(list(scene.core.scheduler.running))
    long = scene.ask(LONG, 1)
    began = time.perf_counter()
    while not long.finished:
        scene.step()
    return {"long_first_token_s": time.perf_counter() - began}


SCENES: dict[str, Callable[[Scene], dict[str, Any]]] = {"beside": beside, "behind": behind, "alone": alone}


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def measured(scene: str, model: str, checkout: Path) -> dict[str, Any]:
    """A scene in a process that imports Motet from this checkout."""
    command = [sys.executable, "-P", __file__, "--model", model, "--scene", scene]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    lines = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def median_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} | {"runs": list(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--scene", choices=SCENES, help="measure this one here, and print it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.scene is not None:
        with torch.inference_mode():
            print(json.dumps(SCENES[options.scene](Scene(options.model))))
        return
    from benchmarks.common import report

    checkouts = {"now": Path(__file__).parent.parent}
    if options.against is not None:
        checkouts["before"] = options.against
    results: dict[str, Any] = {"model": Path(options.model).name}
    for scene in options.scenes:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for _ in range(options.rounds):
            for name, checkout in checkouts.items():
                runs[name].append(measured(scene, options.model, checkout))
        results[scene] = {name: median_of(own) for name, own in runs.items()}
        for name, own in results[scene].items():
            print(
                scene, name, "  ".join(f"{key} {value:.3g}" for key, value in own.items() if key != "runs"), flush=True
            )
    report("latency", results, options.out)


if __name__ == "__main__":
    main()
