"""Stage 1: the kernels, compiled, against the float64 oracle: the checks of `tests/kernels`, and every shape that stage
2 measures. Groups of checks compile variants of their own beside one another; stage 2 finds its kernels compiled.

Compiling takes most of it: one to four seconds a variant, half a minute for all that one shape of all rules needs.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from benchmarks.gpu.bandwidth import checked, grid, members
from benchmarks.gpu.device import DEVICE, Graph
from benchmarks.gpu.stages import Budget, Line
from motet.kernels.decode import decode
from motet.kernels.sampling import SampleRows
from motet.kernels.triton.backend import TritonKernels
from tests.kernels import checks
from tests.kernels.cases import plans
from tests.kernels.oracle import step_of

Check = Callable[[], float | None]
FEW = 9  # of nine plans one, in the interpreter
HUGE = 1 << 33  # bytes that a check of far addresses takes


def all_rules(dtype: torch.dtype, vocabularies: Sequence[int], step: int = 1) -> dict[str, Check]:
    """Tokens tie in half precision, and in large vocabularies one may round across the edge of a nucleus."""
    return {
        f"V={vocab}": partial(
            checks.all_rules, vocab, dtype, nuclei=dtype == torch.float32 and vocab < 10_000, step=step
        )
        for vocab in vocabularies
    }


def tokens(tiny: bool) -> dict[str, Check]:
    return {
        "one token": partial(checks.greedy_and_forced, 1, [-1, 0], FEW if tiny else 1),
        "greedy": partial(checks.greedy_and_forced, 257, [-1], FEW if tiny else 1),
    }


def more_tokens(tiny: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"company": partial(checks.company, 300)}
    if not tiny:
        found["forced"] = partial(checks.greedy_and_forced, 1100, [1099, -1, 550])
        found["greedy, V=32007"] = partial(checks.greedy_and_forced, 32_007, [-1])
    return found


def splits(tiny: bool) -> dict[str, Check]:
    return {} if tiny else {"splits": partial(checks.splits, 5000, 1)}


def reports(tiny: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"top 5": partial(checks.alternatives, 300, 5)}
    if not tiny:
        found["top 20"] = partial(checks.alternatives, 151_936, 20)
        found["traces"] = partial(checks.traces, 1500)
    return found


def grammars(tiny: bool) -> dict[str, Check]:
    if tiny:
        return {"V=31": partial(checks.grammars, 31, FEW)}
    return {f"V={vocab}": partial(checks.grammars, vocab) for vocab in (1, 31, 33, 1057)}


def filters(tiny: bool) -> dict[str, Check]:
    generator = random.Random(0)
    found: dict[str, Check] = {}
    for number in range(2 if tiny else 40):
        warp = checks.Warp(
            generator.uniform(0.3, 2), generator.randrange(80), generator.uniform(0.05, 1), generator.uniform(0, 0.3)
        )
        vocab = 600 if tiny or number % 2 else 151_936
        found[f"{warp}, V={vocab}"] = partial(checks.thresholds, warp, vocab, number)
    for warp, vocab in ((checks.Warp(0.7, 0, 1.0, 0.0), 2500), (checks.Warp(0.9, 10, 0.8, 0.05), 300)):
        if not tiny:
            found[f"frequencies, {warp}, V={vocab}"] = partial(checks.frequencies, warp, vocab, 50_000)
    return found


def edges(tiny: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"NaN": checks.broken_member}
    if not tiny:
        found |= {"impossible tokens": checks.impossible_tokens, "unlike members": checks.unlike_members}
        if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] > HUGE:
            found["rows beyond 2^31"] = checks.rows_far_apart
    return found


def memory(tiny: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"next step in place": checks.next_step_in_place}
    if DEVICE == "cuda":
        found["captured"] = captured
    return found


def captured() -> None:
    """A graph of the launches, replayed after the next step was staged, gives what the launches give."""
    chosen = plans(1100)
    count = len(chosen)
    columns = zip(*([(0.8, 3, 0.9, 0.01), (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0)] * count)[:count], strict=True)
    params = SampleRows(*[list(column) for column in columns])  # type: ignore[arg-type]
    kernels = TritonKernels()
    logits, rows = step_of(chosen, 1100, 0, params, trace=(0, 2))
    step = kernels.stage(logits, rows)
    graph = Graph(lambda: kernels.launch(step))
    for seed in (1, 2):
        again, other = step_of(chosen, 1100, seed, params, trace=(0, 2))
        for held, new in zip(logits.buffers, again.buffers, strict=True):
            held.copy_(new)
        kernels.stage(logits, other)
        graph.replay()
        expected = decode(TritonKernels(), logits, other)
        assert torch.equal(step.out.token, expected.token)
        torch.testing.assert_close(step.out.report[:, 0], expected.logprob)


def shapes(count: int, tiny: bool) -> dict[str, Check]:
    """Those of stage 2 with K members."""
    return {str(case): partial(checked, case) for case in grid(tiny, count)}


def rules(dtype: torch.dtype, vocabularies: Sequence[int], tiny: bool) -> dict[str, Check]:
    return all_rules(dtype, vocabularies[:1], FEW) if tiny else all_rules(dtype, vocabularies)


CHECKS: Mapping[str, Callable[[bool], dict[str, Check]]] = {
    "float32": partial(rules, torch.float32, (31, 1)),
    "float32, several tiles": partial(rules, torch.float32, (257, 1000)),
    "float32, large": partial(rules, torch.float32, (32_007, 151_936)),
    "bfloat16": partial(rules, torch.bfloat16, (257, 1000)),
    "float16": partial(rules, torch.float16, (257, 1000)),
    "tokens": tokens,
    "more tokens": more_tokens,
    "splits": splits,
    "reports": reports,
    "grammars": grammars,
    "filters": filters,
    "edges": edges,
    "memory": memory,
    **{f"members {count}": partial(shapes, count) for count in members(tiny=False)},
}
SMALL = (("float32", "memory", "members 3"), ("grammars", "tokens", "reports", "filters", "edges"))


def lines(names: Sequence[str], budget: Budget, tiny: bool) -> Iterator[Line]:
    """Of every check, how far it was off and whether it held."""
    for group in names:
        for name, check in CHECKS[group](tiny).items():
            if budget.is_spent:
                yield {"table": "correctness", "group": group, "check": name, "held": "not run: no time was left"}
                continue
            began = time.perf_counter()
            held, worst = "yes", None
            try:
                worst = check()
            except Exception as error:
                traceback.print_exc()
                held = f"no: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            spent = round(time.perf_counter() - began, 2)
            yield {
                "table": "correctness",
                "group": group,
                "check": name,
                "held": held,
                "nats": worst,
                "seconds": spent,
            }
