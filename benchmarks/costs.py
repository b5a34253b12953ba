"""What every strategy's step costs over the bare forwards of its members: one batch of equal requests each.

    python -m benchmarks.costs --out benchmarks/results/costs.json

Theory: a step reads the weights of every member once, and the floor is the sum of the members' own forwards over the
same slots, measured here beside it: `bare`. What is above that is composition, sampling and bookkeeping. A strategy
that runs a member for some tokens alone (`cascade`, `routed`) is measured as its batch is: every row composed.
Where the base needs a trained head, it has one of the usual size whose weights are the untrained ones.

Rows are few here (16 × 4,096 float32 are 256 KB), so that a step's own Python weighs more than a pass over them. A
weighted sum passes over its rows about once per stream and six times to normalise and draw. Two rules need more by
their nature: the strength of `dynamic` is where a divergence has a value, and each divergence that it takes is 9 passes
over float64 rows; `discriminator` normalises both classes for the drawn token too, and sums a mass.

The members are random, in bfloat16. The two variants of a strategy run in turn; a figure is the median over rounds of
the mean step of `--steps` steps, a ratio the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch

from benchmarks.common import environment, interleave, make_family, median_of_ratios, report
from benchmarks.step import step_variants
from motet.composers.catalogue import example, plan_of
from motet.composers.plan import Plan
from motet.composers.strategies import STRATEGIES
from motet.engines.torch import Member, load_member
from motet.models.heads import GateHead, ReadingHead, RouterHead, ScaleHead, SimilarityHead
from motet.models.info import HeadKind


def plan_for(strategy: str) -> Plan | None:
    """The shortest composition of a strategy, an ensemble of two: its base the large member, its other players the
    small ones in turn."""
    body = example(STRATEGIES[strategy])
    if body is not None and len(body.get("members", ())) == 1:  # an ensemble of one composes nothing
        body = example(STRATEGIES[strategy], members=["base", "other"])
    plan = None if body is None else plan_of(body)
    if plan is None:
        return None
    others = dict.fromkeys(stream.model for stream in plan.streams[1:] if stream.model != plan.streams[0].model)
    cast = {plan.streams[0].model: "base"} | {
        player: ("expert", "antiexpert")[place % 2] for place, player in enumerate(others)
    }
    return replace(plan, streams=tuple(replace(stream, model=cast[stream.model]) for stream in plan.streams))


def head_for(plan: Plan) -> tuple[HeadKind, Callable[[int], ReadingHead]] | None:
    """Of the first kind that the plan takes."""
    if not plan.heads:
        return None
    kind = plan.heads[0]
    clusters = [str(number) for number in range(len(plan.streams) - 1)]
    heads: dict[HeadKind, Callable[[int], ReadingHead]] = {
        "gate": GateHead,
        "router": lambda hidden_size: RouterHead(hidden_size, top=100, width=256, blocks=2),
        "temperature": lambda hidden_size: ScaleHead(hidden_size, 0.4, 2.5),
        "strength": lambda hidden_size: ScaleHead(hidden_size, 0.1, 2.0),
        "similarity": lambda hidden_size: SimilarityHead(hidden_size, clusters),
    }
    return kind, heads[kind]


@torch.inference_mode()
def measure(members: Mapping[str, Member], plan: Plan, batch: int, steps: int, rounds: int) -> dict[str, float]:
    used = {stream.model: members[stream.model] for stream in plan.streams}
    times = interleave(step_variants(used, plan, batch, steps), rounds)
    return {
        "streams": len(plan.streams),
        "bare_ms": 1e3 * statistics.median(times["bare"]),
        "composed_ms": 1e3 * statistics.median(times["composed"]),
        "composed_over_bare": median_of_ratios(times["composed"], times["bare"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "medium"), default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=sorted(STRATEGIES), default=sorted(STRATEGIES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(environment())
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        paths = make_family(Path(folder), options.size)
        members = {name: load_member(name, str(path)) for name, path in paths.items()}
        for name in options.only:
            plan = plan_for(name)
            if plan is None:
                print(f"{name:22} left out: nothing that is it composes models alone")
                continue
            own = members
            if (head := head_for(plan)) is not None:
                own = {**members, "base": load_member("base", str(paths["base"]), head=head)}
            found[name] = measure(own, plan, options.batch, options.steps, options.rounds)
            print(f"{name:22}", "  ".join(f"{key} {value:.3g}" for key, value in found[name].items()), flush=True)
    report("costs", {"size": options.size, "batch": options.batch, "strategies": found}, options.out)


if __name__ == "__main__":
    main()
