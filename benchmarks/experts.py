"""Experts made for composition, on the demo world: trained through it, and a composition baked into one model.

    python -m benchmarks.experts --seeds 0 1 2 --out benchmarks/results/experts.json

Exact match on held-out questions. The plain experts and the one trained through the composition have the same data,
steps and size; α = 1 for all. The demo's own plain expert weighs facts by 0.1, the other ones do not. They are composed
in two ways: every member reads the same chat prompt, or the expert alone does. *Baked* is the larger base, trained on
the composition's own distributions over the tuned questions (the composition of the plain expert where the expert alone
reads the question); it costs one model's forward pass.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import environment
from benchmarks.lab import Lab
from motet.demo.family import build_family

BAKED_AIM = 0.9  # of the composed accuracy


def proxy(expert: str, **reading: str) -> dict[str, Any]:
    """A subject: the larger base steered by an expert; base and anti-expert read what `reading` says."""
    base, antiexpert = ({"model": model, **reading} for model in ("large", "small"))
    fields = {"strategy": "proxy_tuning", "base": base, "expert": expert, "antiexpert": antiexpert, "alpha": 1.0}
    return {"composition": fields}


SUBJECTS: dict[str, Any] = {
    "larger base": "large",
    "larger model tuned directly": "large-chat",
    "plain expert alone": "small-chat",
    "plain expert, one prompt for all": proxy("small-chat", template="chat"),
    "the same, facts weighed as the rest": proxy("plain", template="chat"),
    "trained through it, one prompt for all": proxy("through-one", template="chat"),
    "plain expert, prompt to the expert": proxy("small-chat", prompt=""),
    "the same, facts weighed as the rest, prompt to the expert": proxy("plain", prompt=""),
    "trained through it, prompt to the expert": proxy("through-expert", prompt=""),
    "composition baked into one model": "bake",
}


def run_seed(family: Path, folder: Path, limit: int) -> dict[str, float | None]:
    """Exact match by subject, in [0, 1]."""
    lab = Lab(family, folder)
    one = [f"through.{role}={{model: {model}, template: chat}}" for role, model in
           (("base", "large"), ("antiexpert", "small"))]  # fmt: skip
    lab.train("plain", "small-chat", "data.train.span_weights={}")
    lab.train("through-one", "through-expert", *one)
    lab.train("through-expert", "through-expert")
    lab.train("bake", "bake")
    base, tuned = "larger base", "larger model tuned directly"
    task = {"type": "gap_closed", "data": "held_out.jsonl", "base": base, "tuned": tuned, "max_tokens": 24}
    measures = lab.evaluate(SUBJECTS, [task], limit).measures
    return {subject: measures[subject]["exact match"] for subject in SUBJECTS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=200, help="questions, at most")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seeds: dict[str, dict[str, float | None]] = {}
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            seeds[str(seed)] = run_seed(build_family(seed), Path(folder), options.limit)
    kept = {
        seed: (row["composition baked into one model"] or 0.0) / (row["plain expert, prompt to the expert"] or 1.0)
        for seed, row in seeds.items()
    }
    result = {"benchmark": "experts", "environment": asdict(environment()), "exact match": seeds, "baked keeps": kept}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for subject in SUBJECTS:
        shares = "  ".join(f"{100 * (row[subject] or 0.0):5.1f}" for row in seeds.values())
        print(f"{subject:42} {shares}")
    print(f"baked keeps (aim ≥ {BAKED_AIM}): " + "  ".join(f"{value:.3f}" for value in kept.values()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
