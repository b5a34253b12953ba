"""Unlearning on a real checkpoint: Gemma 3 270M is taught invented authors, then forgets half of them.

As `benchmarks.unlearning` does on the demo's models, by the same packaged recipes, choices and measures: TOFU's
questions and answers (Maini et al. 2024, arXiv:2401.06121), forget quality against a model that never read of the
forgotten authors, model utility over the retained authors, real authors and world facts. Weight-changing methods train
adapters, assistants are the target's first layers with an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab
from benchmarks.real.authors import RETAIN_ONLY, SPLITS, TARGET, write_family
from benchmarks.real.judge import judged
from benchmarks.real.setup import GEMMA, Setup
from benchmarks.real.trained import RECIPES
from benchmarks.unlearning import measure, print_summary, summary, train_all

NAMES = ()
LAYERS = 6  # of 18, in an assistant
EPOCHS = 8  # of teaching
LIMIT = 120  # rows of each data file, at most
QUALITY, KEPT = 0.05, 0.98  # aims: the p-value of forget quality, and the share of model utility that is kept
ADAPTER = "tuning={type: lora, r: 32, alpha: 32}"
ASSISTANT = (
    f"model={{path: {TARGET}, layers: {LAYERS}}}",
    "tuning={type: lora, r: 32, alpha: 32, merge: true}",
    "batch.max_length=96",
    "optimizer.lr=1e-3",
)
ROWS = {  # per step: the vocabulary is 128 times the demo's, and the losses hold every token's distribution
    "forget-assistant": {"forget": 16, "retain": 8, "nobody": 8},
    "counterfactual-assistant": {"forget": 8, "retain": 6, "nobody": 6},
}
STEPS = {"forget-assistant": 400, "counterfactual-assistant": 800}  # the packaged recipes', before the size's share
LENGTHS = {"ga": 40, "ga-gd": 160, "ga-kl": 160, "npo": 240, "idk": 160}  # likewise
EXPECTED = f"""\
expected: after teaching, forgotten and retained authors are answered alike; the counterfactual assistant at w = 1 with
forget quality p > {QUALITY} and {KEPT:.0%} of model utility, the reversed one below, methods on weights below both."""


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """All seeds; results are saved after each. Stages have systems of which some may be wanted; this one has none."""
    del wanted
    print(EXPECTED, flush=True)
    seeds: dict[str, dict[str, Any]] = {}
    for seed in range(setup.size.seeds):
        print(f"seed {seed}", flush=True)
        seeds[str(seed)] = _seed(setup, setup.folder("unlearning") / f"seed-{seed}", seed)
        setup.save("unlearning", {"seeds": seeds, "summary": summary(seeds)})
    rows = summary(seeds)
    print_summary(rows)
    _judge(rows)
    return setup.save("unlearning", {"seeds": seeds, "summary": rows})


def _seed(setup: Setup, folder: Path, seed: int) -> dict[str, Any]:
    """Trains and measures what was not trained and measured before."""
    write_family(folder, setup.model(GEMMA), setup.size.authors, seed, setup.dtype)
    teach(folder, setup.size.steps)
    lab = Lab(folder, folder)
    lengths = {method: (scaled(steps, setup),) for method, steps in LENGTHS.items()}
    train_all(lab, lengths, _settings(setup))
    return measure(lab, LIMIT, lengths=lengths, splits=SPLITS)


def teach(folder: Path, share: float) -> None:
    """The target knows all authors, the retain-only model the retained ones; each as many epochs as the other."""
    lab = Lab(folder, folder)
    epochs = max(1, round(EPOCHS * min(1.0, 4 * share)))
    for name, files in ((TARGET, "[data/forget.jsonl, data/retain.jsonl]"), (RETAIN_ONLY, "[data/retain.jsonl]")):
        recipe = str(RECIPES / "tofu-taught.yaml")
        lab.train(name, recipe, f"data.train.files={files}", f"schedule.epochs={epochs}")


def _settings(setup: Setup) -> dict[str, tuple[str, ...]]:
    assistants = {recipe: (*ASSISTANT, *_size(recipe, scaled(steps, setup))) for recipe, steps in STEPS.items()}
    methods = dict.fromkeys(LENGTHS, (ADAPTER, "batch.max_length=96"))
    return {**methods, **assistants}


def _size(recipe: str, steps: int) -> tuple[str, ...]:
    return (f"schedule.steps={steps}", *(f"data.{name}.rows={rows}" for name, rows in ROWS[recipe].items()))


def scaled(steps: int, setup: Setup) -> int:
    return max(2, round(steps * setup.size.steps))


def _judge(rows: Mapping[str, Mapping[str, Any]]) -> None:
    for method in ("counterfactual assistant, w = 1", "reversed assistant, w chosen"):
        row = rows[method]
        print(judged(f"{method}: least forget quality", min(row["forget quality"]), QUALITY))
        print(judged(f"{method}: least utility kept", row["least utility kept"], KEPT))
