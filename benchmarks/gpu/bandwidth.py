"""Stage 2: one decode over bfloat16 logits: plain sums, plausibility masks and filtered draws apart.

The floor is one read of the rows' K × V logits at the rate of a large copy of the same run (reads and writes counted).
In turn with ours: a copy that moves as many bytes, and the textbook chain in eager torch. Each is timed twice: its
launches in a graph by the device's clock, and the call by the wall clock, staging and launching included. Several sets
of logits take turns, as many as a cache cannot hold, up to `MOST_SETS`.
"""

from __future__ import annotations

import math
import statistics
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import interleave, median_of_ratios
from benchmarks.gpu.device import DEVICE, Graph, copy_rate, described, device_seconds, l2_bytes, seconds_of
from benchmarks.gpu.stages import Budget, Line
from benchmarks.kernels import TEMPERATURE, TOP_K, TOP_P, Case, decoding, textbook
from motet.kernels.decode import Decoded, DecodeRows, decode
from motet.kernels.logits import Logits
from motet.kernels.reference import composed, warp
from motet.kernels.triton.backend import TritonKernels
from tests.kernels.oracle import ATOL

KINDS = {"plain": ("linear", "none"), "masked": ("contrastive", "none"), "filtered": ("linear", "top_k_top_p")}
ROUNDS = 7
MOST_SETS = 8
STEPS_PER_GRAPH = 32  # of short steps, so that starting the graph counts little
# by kind, rows and vocabulary: what others published of sampling alone, one member, on hardware of their own; and the
# copy bound of three members by an H200's copy rate. To judge ours by; not measured here
PUBLISHED = {
    ("filtered", 64, 131_072): "FlashInfer 106 to 199 µs",
    ("filtered", 64, 151_936): "a fused Triton sampler 97 to 162 µs",
    ("plain", 64, 151_936): "three members at 4.3 TB/s: 13.6 µs",
}


def members(*, tiny: bool) -> Sequence[int]:
    return (3,) if tiny else (1, 2, 3, 4, 5, 6)


def grid(tiny: bool, count: int) -> list[Case]:
    """The cases of K members, those of the anchors first."""
    vocabularies, rows = ((300,), (2,)) if tiny else ((151_936, 131_072, 32_000), (64, 16, 1))
    return [
        Case(rule, many, vocab, count, warped)
        for vocab in vocabularies
        for many in rows
        for rule, warped in KINDS.values()
    ]


def cases(tiny: bool) -> list[Case]:
    """Three members first, as proxy-tuning has: what is left out when time runs out is the least asked for."""
    counts = sorted(members(tiny=tiny), key=lambda count: (abs(count - 3), count))
    return [case for count in counts for case in grid(tiny, count)]


def kind_of(case: Case) -> str:
    return next(kind for kind, form in KINDS.items() if form == (case.rule, case.warp))


def made(case: Case, seed: int) -> list[Tensor]:
    """A member's logits each, (rows, V), made on the device."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shape = (case.rows, case.vocab)
    return [(3 * torch.randn(shape, generator=generator, device=DEVICE)).bfloat16() for _ in range(case.members)]


def checked(case: Case) -> float:
    """One decode of the case against the oracle: the log-probs of the tokens that were drawn, and that the rows' masks
    and filters let them be. Returns the largest error in nats."""
    buffers = made(case, 0)
    logits, rows = decoding(case, buffers)
    got = decode(TritonKernels(), logits, rows)
    exact, wanted = decoding(case, [buffer.double() for buffer in buffers])
    logprobs = composed(exact.logprobs(), wanted.plan).logprobs
    chosen = logprobs.gather(-1, got.token[:, None])[:, 0]
    assert bool((chosen > -math.inf).all()), "a masked token was drawn"
    worst = float((got.logprob - chosen).abs().max())
    assert worst < ATOL, f"off by {worst}"
    params = wanted.sampling
    if params.is_filtered(0):
        table = [torch.tensor(column, device=DEVICE) for column in (params.temperature, params.top_p, params.min_p)]
        temperature, top_p, min_p = (column.double() for column in table)
        kept = warp(logprobs, temperature, torch.tensor(params.top_k, device=DEVICE), top_p, min_p) > 0
        least = logprobs.masked_fill(~kept, math.inf).amin(-1)  # tokens that tie with it are kept, too
        assert bool((chosen >= least - ATOL).all()), "a filtered token was drawn"
    return worst


def raced(probs: Tensor) -> Tensor:
    """One draw per row (R, V), by exponential arrival times: torch's multinomial waits for the device, and no graph can
    hold that."""
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


class Sets:
    """Several steps of one case, over logits of their own."""

    def __init__(self, case: Case) -> None:
        count = max(2, min(MOST_SETS, math.ceil(3 * l2_bytes() / case.floor_bytes)))
        self.buffers = [made(case, seed) for seed in range(count)]
        steps = [(TritonKernels(), *decoding(case, buffers)) for buffers in self.buffers]
        self._steps = steps
        staged = [(kernels, kernels.stage(logits, rows)) for kernels, logits, rows in steps]
        eager = [textbook(case, buffers, raced) for buffers in self.buffers]
        half = case.floor_bytes // 2
        pairs = [torch.empty(2, half, dtype=torch.uint8, device=DEVICE).random_() for _ in range(count)]
        self._launches = lambda: [kernels.launch(step) for kernels, step in staged]
        self._eager = lambda: [run() for run in eager]
        self._copies = lambda: [pair[0].copy_(pair[1]) for pair in pairs]

    def variants(self) -> dict[str, Callable[[], Callable[[], float]]]:
        """By name, what prepares a measurement: a call that gives µs of one step."""
        found = {"motet call": partial(self._timed, self._calls), "eager call": partial(self._timed, self._eager)}
        if DEVICE == "cpu":
            return found
        passes = max(1, STEPS_PER_GRAPH // len(self.buffers))
        graphs = {"motet": (self._launches, passes), "eager": (self._eager, 1), "copy": (self._copies, passes)}
        return found | {name: partial(self._captured, *run) for name, run in graphs.items()}

    def _calls(self) -> list[Decoded]:
        return [self._decoded(*step) for step in self._steps]

    @staticmethod
    def _decoded(kernels: TritonKernels, logits: Logits, rows: DecodeRows) -> Decoded:
        return decode(kernels, logits, rows)

    def _timed(self, run: Callable[[], object]) -> Callable[[], float]:
        run()
        return lambda: 1e6 * seconds_of(run) / len(self.buffers)

    def _captured(self, run: Callable[[], object], passes: int) -> Callable[[], float]:
        graph = Graph(lambda: [run() for _ in range(passes)])
        return lambda: 1e6 * device_seconds(graph.replay, 2) / (passes * len(self.buffers))


def measured(case: Case, rate: float, rounds: int) -> Line:
    """A line of the table. A variant that fails is told, and the others are measured."""
    sets, ready, failed = Sets(case), dict[str, Callable[[], float]](), dict[str, str]()
    for name, prepare in sets.variants().items():
        try:
            ready[name] = prepare()
        except Exception as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    figures = interleave(ready, rounds, warm_up=min(1, rounds - 1))
    floor = 1e6 * case.floor_bytes / rate
    line: Line = {
        "table": "bandwidth",
        "kind": kind_of(case),
        "rows": case.rows,
        "vocab": case.vocab,
        "members": case.members,
        "sets": len(sets.buffers),
        "floor_us": round(floor, 2),
    }
    for name in ("motet", "copy", "eager", "motet call", "eager call"):
        line[f"{name} us"] = round(statistics.median(figures[name]), 2) if name in figures else None
    line |= _ratios(figures, floor)
    published = PUBLISHED.get((kind_of(case), case.rows, case.vocab))
    line |= {"published": published} if published else {}
    return line | ({"failed": failed} if failed else {})


def _ratios(figures: dict[str, list[float]], floor: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "motet" in figures:
        deciles = statistics.quantiles(figures["motet"], n=10)
        found |= {"p20 us": round(deciles[1], 2), "p80 us": round(deciles[7], 2)}
        found["of floor"] = round(floor / statistics.median(figures["motet"]), 3)
    for ratio, top, bottom in (
        ("of copy", "copy", "motet"),
        ("over eager", "eager", "motet"),
        ("call over eager call", "eager call", "motet call"),
    ):
        if top in figures and bottom in figures:
            found[ratio] = round(median_of_ratios(figures[top], figures[bottom]), 3)
    return found


def lines(names: Sequence[str], budget: Budget, tiny: bool) -> Iterator[Line]:
    rate = copy_rate()
    yield {"table": "facts", **described(rate), "temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P}
    for case in cases(tiny):
        if budget.is_spent:
            yield {"table": "bandwidth", "kind": kind_of(case), "failed": {"all": "not run: no time was left"}}
            return
        yield measured(case, rate, 1 if tiny else ROUNDS)
