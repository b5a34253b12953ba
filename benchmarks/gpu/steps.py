"""Stage 3: a composed step of proxy-tuning over three models, with CUDA graphs and without, by batch.

Theory: a step reads every member's weights, and keys and values of every row, once; `floor` is their bytes at the rate
of a large copy of the same run. `bare` are the members' forwards one after another, nothing composed, nothing read by
the host; `bare graph` the same as a graph each. `composed` adds composing, drawing and the tokens' way to the host,
launch by launch; `composed graph` is one graph of all that happens on the device. `engine` is `EngineCore.step` as it
serves requests, which captures nothing. All run in turn; a figure is the median over rounds of the mean of `STEPS`
steps.
"""

from __future__ import annotations

import gc
import math
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch

from benchmarks.common import interleave, median_of_ratios
from benchmarks.gpu.composite import Composite, EagerStep, GraphStep
from benchmarks.gpu.device import DEVICE, Graph, copy_rate, described, seconds_of
from benchmarks.gpu.families import FAMILIES, model_of, weight_bytes
from benchmarks.gpu.stages import Budget, Line
from benchmarks.step import engine_at
from motet.composers.plan import Plan, Stream
from motet.engines.torch import EngineCore, EngineSettings, Member

NAMES = ("base", "expert", "antiexpert")
PLAN = Plan(tuple(Stream(name, name, weight) for name, weight in zip(NAMES, (1.0, 1.0, -1.0), strict=True)))
BATCHES = (1, 16, 64)
CONTEXT, LENGTH = 384, 512  # tokens held at first, and keys that are read: a bucket of a server's lengths
STEPS, ROUNDS = 8, 7
SAME = 0.9  # of the rows draw the same with a graph and without: one may stand at the edge between two tokens
PREFILL = 8192  # tokens of prompts in a step of the engine, however long it takes: it is not what is measured
CACHE_GIB = 24  # of the engine's own keys and values
Variant = Callable[[], float]


class Family:
    """Three models, and what is measured with them."""

    def __init__(self, name: str, tiny: bool) -> None:
        self.name = name
        self.shapes = FAMILIES[name]
        self.batches = (2,) if tiny else BATCHES
        self.steps, self.rounds = (1, 1) if tiny else (STEPS, ROUNDS)
        self.context, self.length = (8, 32) if tiny else (CONTEXT, LENGTH)
        self.models = [model_of(shape, seed) for seed, shape in enumerate(self.shapes)]
        self.bytes = sum(weight_bytes(model) for model in self.models)

    def floor_bytes(self, batch: int) -> int:
        """Of one step at the keys that are read."""
        return self.bytes + batch * self.length * sum(shape.kv_bytes for shape in self.shapes)

    def variants(self, batch: int) -> dict[str, Callable[[], Variant]]:
        """By name, what prepares a measurement: a call that gives milliseconds per step."""
        composite = Composite(self.models, self.shapes, PLAN, batch, self.context, self.length)

        def paced(step: Callable[[], object]) -> Variant:
            def run() -> float:
                composite.start()
                return 1e3 * seconds_of(step, self.steps)

            return run

        def engine() -> Variant:
            core = self.engine(batch)
            return lambda: 1e3 * seconds_of(core.step, self.steps)

        found = {
            "bare": lambda: paced(composite.forwards),
            "composed": lambda: paced(EagerStep(composite)),
        }
        if DEVICE == "cuda":
            found["bare graph"] = lambda: paced(_replays(composite))
            found["composed graph"] = lambda: paced(_compared(composite))
        return {**found, "engine": engine}

    def engine(self, batch: int) -> EngineCore:
        """With requests that will decode for as long as is measured."""
        members = {
            name: Member(name, model, self.length, shape.vocab, shape.kv)
            for name, model, shape in zip(NAMES, self.models, self.shapes, strict=True)
        }
        generator = torch.Generator().manual_seed(batch)
        prompts = torch.randint(3, self.shapes[0].vocab, (batch, self.context), generator=generator)
        settings = EngineSettings(CACHE_GIB << 30, batch, PREFILL, PREFILL, stretch=1e6, idle_stretch=1e6)
        contexts = cast("list[list[int]]", prompts.tolist())
        return engine_at(members, contexts, self.length - self.context - 1, PLAN, settings)


def _replays(composite: Composite) -> Callable[[], object]:
    """Every member's forward as a graph of its own."""
    graphs = [Graph(lambda number=number: composite.forward(number)) for number in range(len(composite.models))]
    return lambda: [graph.replay() for graph in graphs]


def _compared(composite: Composite) -> GraphStep:
    """A graph whose tokens are those of the same launches without one.

    Raises:
        RuntimeError: they are others.
    """
    captured, found = GraphStep(composite), list[list[int]]()
    for step in (EagerStep(composite), captured):
        composite.start()
        found.append(step())
    wanted, drawn = found
    same = sum(a == b for a, b in zip(wanted, drawn, strict=True)) / len(wanted)
    if same < SAME:
        raise RuntimeError(f"the graph draws {drawn[:4]}…, the launches {wanted[:4]}…: {same:.0%} are the same")
    return captured


def measured(family: Family, batch: int, rate: float) -> Iterator[Line]:
    """A line per variant. One that fails is told, and the others are measured."""
    ready: dict[str, Variant] = {}
    head: Line = {"table": "steps", "family": family.name, "batch": batch}
    for name, prepare in family.variants(batch).items():
        try:
            run = prepare()
            run()
            ready[name] = run
        except Exception as error:
            traceback.print_exc()
            yield {**head, "variant": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
    figures = interleave(ready, family.rounds, warm_up=0)
    floor = 1e3 * family.floor_bytes(batch) / rate
    for name, times in figures.items():
        line = {**head, "variant": name, "ms": round(statistics.median(times), 3), "floor_ms": round(floor, 3)}
        line |= {"least_ms": round(min(times), 3), "most_ms": round(max(times), 3)}
        for bare in ("bare", "bare graph"):
            ratio = median_of_ratios(times, figures[bare]) if bare in figures else math.nan
            line[f"over {bare}"] = None if math.isnan(ratio) else round(ratio, 3)
        yield line


def lines(names: Sequence[str], budget: Budget, tiny: bool) -> Iterator[Line]:
    rate = copy_rate()
    for name in names:
        family = Family(name, tiny)
        yield {"table": "facts", **described(rate), f"weights_gb {name}": round(family.bytes / 1e9, 2)}
        for batch in family.batches:
            if budget.is_spent:
                yield {"table": "steps", "family": name, "batch": batch, "failed": "not run: no time was left"}
                continue
            yield from measured(family, batch, rate)
            gc.collect()
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
