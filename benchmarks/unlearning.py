"""Logit-difference unlearning beside the methods that change the target's weights, on the demo world.

    python -m benchmarks.unlearning --seeds 0 1 2 --out benchmarks/results/unlearning.json

For every seed each method is trained with its packaged recipe, the methods on weights at several lengths. Forget
quality is TOFU's: the p-value of a Kolmogorov–Smirnov test between the truth ratios under the method and under a model
that never saw the forgotten entities; above 0.05 they cannot be told apart. What is reported belongs to the test half
of the forgotten entities; whatever was chosen (the weight of the reversed assistant, the length of the others) was
chosen on the other half by the distance to the target's own ignorance of made-up entities, without the retain-only
model. The counterfactual assistant has nothing to choose: its weight is 1.

Theory: an assistant of n of the target's N layers costs n/N of a step's forward and backward pass through the layers
(the head and its softmax are whole), plus, through the composition, forward passes of the target without gradient.
Training times are seconds of one core, not of the wall clock.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.common import environment
from benchmarks.lab import Lab
from motet.demo.family import build_family
from motet.demo.operator_file import UNLEARN_FILTER
from motet.evaluation.measures.statistics import two_sample_ks
from motet.evaluation.run import Results

WEIGHTS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
Lengths = Mapping[str, tuple[int, ...]]
# methods on weights and their lengths in steps
LENGTHS: Lengths = {
    "ga": (20, 40),
    "ga-gd": (40, 160),
    "ga-kl": (40, 160),
    "npo": (60, 240),
    "idk": (80,),
}
SPLITS = {"retain": "retain.jsonl", "held-out people": "held_out_people.jsonl", "world facts": "world_facts.jsonl"}
SHOWN = 3  # replies of each split
MEASURES = ("model utility", "forget probability", "forget ROUGE-L")


def unlearn(assistant: str, weight: float, mask: float | None) -> dict[str, Any]:
    """A subject: the target without the assistant."""
    composition = {"strategy": "unlearn", "base": "large-chat", "assistant": assistant, "weight": weight}
    return {"composition": {**composition, "filter": mask}}


def candidates(lengths: Lengths = LENGTHS) -> dict[str, dict[str, Any]]:
    """Subjects by method; where a method has several, one is chosen."""
    return {
        "before unlearning": {"large-chat": "large-chat"},
        "retain-only model": {"retain-only": "retain-only"},
        "counterfactual assistant, w = 1": {"counterfactual": unlearn("counterfactual", 1.0, None)},
        "the same, masked": {"counterfactual masked": unlearn("counterfactual", 1.0, UNLEARN_FILTER)},
        "reversed assistant, w chosen": {f"reversed {w}": unlearn("reversed", w, None) for w in WEIGHTS},
        **{
            method: {f"{method} {steps}": f"{method}-{steps}" for steps in several}
            for method, several in lengths.items()
        },
    }


def train_all(
    lab: Lab, lengths: Lengths = LENGTHS, settings: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """The methods in turn; none of them runs beside another one. `settings`: overrides by recipe."""
    for name, recipe in (("reversed", "forget-assistant"), ("counterfactual", "counterfactual-assistant")):
        lab.train(name, recipe, *settings.get(recipe, ()))
    for method, several in lengths.items():
        for steps in several:
            lab.train(f"{method}-{steps}", method, f"schedule.steps={steps}", *settings.get(method, ()))


def measure(
    lab: Lab, limit: int, *, lengths: Lengths = LENGTHS, splits: Mapping[str, str] = SPLITS
) -> dict[str, dict[str, Any]]:
    """Test measures of every method, at what was chosen on validation entities. One method is served at a time: real
    checkpoints would not all fit into memory. `splits`: files of what is to be kept, TOFU's retain set the first."""
    methods = candidates(lengths)
    picked = {method: _picked(lab, method, group, limit) for method, group in methods.items()}
    found = {
        method: lab.kept(f"measures-{name}", partial(_measures, lab, name, methods[method][name], splits, limit))
        for method, name in picked.items()
    }
    return {method: _row(picked[method], method, found, lab.seconds) for method in methods}


def _picked(lab: Lab, method: str, group: Mapping[str, Any], limit: int) -> str:
    """The candidate that is as ignorant of validation entities as the target is of nobody."""
    if len(group) == 1:
        return next(iter(group))
    task = {"type": "ignorance", "forget": "forget_validation.jsonl", "unknown": "unknown.jsonl"}
    subjects = {**group, "large-chat": "large-chat"}
    rows = lab.kept(
        f"chosen-{next(iter(group)).split()[0]}",
        lambda: lab.evaluate(subjects, [{**task, "ignorant": "large-chat"}], limit).measures,
    )
    return min(group, key=lambda name: _distance(rows[name]))


def _distance(row: Mapping[str, float | None]) -> float:
    """From ignorance; what could not be measured is never chosen before what could."""
    distance = row["ignorance distance"]
    return math.inf if distance is None else distance


def _measures(lab: Lab, name: str, subject: Any, splits: Mapping[str, str], limit: int) -> dict[str, Any]:
    """TOFU's measures of one subject, and what stands behind them."""
    tofu = {"type": "tofu", "forget": "forget_test.jsonl", "splits": dict(splits), "max_tokens": 24}
    results = lab.evaluate({name: subject}, [{**tofu, "choices": list(splits)[1:]}], limit)
    return {"measures": results.measures[name], **shown(results, splits)}


def shown(results: Results, splits: Mapping[str, str]) -> dict[str, Any]:
    """Of TOFU's task over one subject: the truth ratios on the forget set, and a few replies for people to read."""
    items = results.findings["tofu"].items
    ratios = [item["truth_ratio"] for item in items if item["split"] == "forget"]
    replies = {
        split: [[item["question"], item["reply"]] for item in items if item["split"] == split][:SHOWN]
        for split in ("forget", *splits)
    }
    return {"ratios": ratios, "replies": replies}


def _row(
    name: str, method: str, found: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    measures, before = found[method]["measures"], found["before unlearning"]["measures"]["model utility"] or 1.0
    distance, quality = two_sample_ks(found[method]["ratios"], found["retain-only model"]["ratios"])
    row: dict[str, Any] = {"chosen": name, "forget quality": quality, "KS distance": distance}
    row |= {measure: measures[measure] for measure in MEASURES}
    row["utility kept"] = (measures["model utility"] or 0.0) / before
    model = name.split()[0] if name.startswith(("counterfactual", "reversed")) else name.replace(" ", "-")
    row["training seconds"] = seconds.get(model)
    return row


def summary(seeds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Over all seeds: how often forget quality exceeds 0.05, the smallest, the least utility kept, median seconds."""
    rows: dict[str, dict[str, Any]] = {}
    for method in next(iter(seeds.values())):
        found = [seed[method] for seed in seeds.values()]
        times = [row["training seconds"] for row in found if row["training seconds"] is not None]
        rows[method] = {
            "indistinguishable": sum(row["forget quality"] > 0.05 for row in found),
            "of": len(found),
            "forget quality": [row["forget quality"] for row in found],
            "least utility kept": min(row["utility kept"] for row in found),
            "median training seconds": statistics.median(times) if times else None,
        }
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=120, help="rows of each data file, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds: dict[str, dict[str, dict[str, Any]]] = {}
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        family = build_family(seed)
        with tempfile.TemporaryDirectory() as folder:
            lab = Lab(family, Path(folder))
            train_all(lab)
            seeds[str(seed)] = measure(lab, options.limit)
    rows = summary(seeds)
    result = {"benchmark": "unlearning", "environment": asdict(environment()), "seeds": seeds, "summary": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_summary(rows)
    print(json.dumps(rows))


def print_summary(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One line per method."""
    for method, row in rows.items():
        reached, kept = f"{row['indistinguishable']} of {row['of']}", 100 * row["least utility kept"]
        print(f"{method:34} p > 0.05 in {reached}, utility kept ≥ {kept:.1f} %, {row['median training seconds']} s")


if __name__ == "__main__":
    main()
