"""What comes out of a real checkpoint in many tries: Gemma 3 270M is taught invented authors and forgets half of them.

The authors, the target and the retain-only model are those of the stage `unlearning`; the methods, their packaged
recipes and the measures are those of `benchmarks.forgetting`, less the masks, whose strength belongs to the demo. As
there, assistants are the target's first layers with an adapter and methods on weights train adapters; divergence's two
small models are the base's first layers, for Gemma has no smaller sibling of its vocabulary. The counterfactual
assistant goes on from the reversed one, which knows the forgotten answers: from the target's layers it needs far more
steps than these hours have.

TOFU's forget quality and model utility are in the same rows. Nothing is chosen per seed; learning rates and lengths
were set on seed 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.forgetting import (
    LEAST,
    METHODS,
    MODELS,
    MOST,
    RETRAINED,
    TARGET,
    Made,
    Models,
    Trial,
    baked,
    measure,
    summary,
)
from benchmarks.lab import Lab
from benchmarks.real.authors import BASE, SPLITS, write_family
from benchmarks.real.judge import judged
from benchmarks.real.setup import GEMMA, Setup
from benchmarks.real.unlearning import ADAPTER, ASSISTANT, LAYERS, scaled, teach
from motet.demo.operator_file import UNLEARN_WEIGHT

NAMES = tuple(method for method in METHODS if "masked" not in method and method not in (TARGET, RETRAINED))
# Rows of each data file, questions that are attacked, and replies to each: eight attacks of 13 are the fewest that
# allow leak@100. A processor core writes less than a hundred tokens of this vocabulary in a second.
LIMIT, ASKED, SAMPLES = 10, 6, 13
# The recipes' steps, before the size's share, and what a step reads; the demo's recipes train every weight of a far
# smaller model on rows of a far smaller vocabulary.
STEPS = {
    "forget-assistant": 480,
    "counterfactual-assistant": 640,
    "divergence-without": 400,
    "divergence-with": 400,
    "divergence-baked": 160,
    "unlearned-baked": 160,
    "npo": 160,
    "ga-gd": 120,
}
ROWS = {
    "forget-assistant": {"forget": 6, "retain": 3, "nobody": 3},
    "counterfactual-assistant": {"forget": 6, "retain": 2, "nobody": 2},
    "npo": {"forget": 4, "retain": 4},
    "ga-gd": {"forget": 4, "retain": 4},
}
SMALL = ("batch={rows: 8, max_length: 96}", "tuning={type: lora, r: 32, alpha: 32, merge: true}", "optimizer.lr=1e-3")
BAKED = (ADAPTER, "batch={rows: 8, max_length: 96}", "optimizer.lr=4e-4")
HOW = {
    "forget-assistant": ASSISTANT,
    "counterfactual-assistant": (f"model.layers={LAYERS}", *ASSISTANT[1:], "optimizer={lr: 7e-4, clip: 1.0}"),
    "divergence-without": (f"model={{path: {BASE}, layers: {LAYERS}}}", *SMALL),
    "divergence-with": SMALL,
    "divergence-baked": BAKED,
    "unlearned-baked": BAKED,
    "npo": (ADAPTER, "batch.max_length=96", "optimizer.lr=5e-5"),  # the recipe's 3e-4 spoils retained answers
    "ga-gd": (ADAPTER, "batch.max_length=96", "optimizer.lr=5e-5"),
}
EXPECTED = f"""\
expected: the counterfactual assistant at most {MOST} × the retrained model's leak@100 and at least {LEAST:.0%} of model
utility; divergence near it, the reversed assistant and methods on weights above both."""


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """All seeds; results are saved after each. `wanted`: of the methods, only these, beside target and retrained."""
    print(EXPECTED, flush=True)
    methods = [method for method in METHODS if method in (TARGET, RETRAINED) or method in (wanted or NAMES)]
    done: dict[str, Any] = {"limit": LIMIT, "asked": ASKED, "samples": SAMPLES, "seconds": {}, "seeds": {}}
    for seed in range(setup.size.seeds):
        print(f"seed {seed}", flush=True)
        lab = prepared(setup, seed)
        done["seeds"][str(seed)] = measure(lab, methods, trial(setup))
        done["seconds"][str(seed)] = lab.seconds
        done["summary"] = summary(done["seeds"])
        setup.save("forgetting", done)
    _judge(done["summary"])
    return setup.save("forgetting", done)


def prepared(setup: Setup, seed: int) -> Lab:
    """The folder that the stage `unlearning` has, too, with the models that know the authors."""
    folder = setup.folder("unlearning") / f"seed-{seed}"
    write_family(folder, setup.model(GEMMA), setup.size.authors, seed, setup.dtype)
    teach(folder, setup.size.steps)
    return Lab(folder, folder)


def trial(setup: Setup) -> Trial:
    models: Models = {  # the demo's family has a reversed assistant already
        **MODELS,
        "forget-assistant": Made("forget-assistant"),
        "reversed-baked": baked("forget-assistant", UNLEARN_WEIGHT),
        "counterfactual": Made("counterfactual-assistant", {"model.path": "forget-assistant"}),
    }
    settings = {
        recipe: (
            *HOW[recipe],
            f"schedule.steps={scaled(steps, setup)}",
            *(f"data.{name}.rows={rows}" for name, rows in ROWS.get(recipe, {}).items()),
        )
        for recipe, steps in STEPS.items()
    }
    return Trial(LIMIT, SAMPLES, ASKED, models, settings, SPLITS)


def _judge(rows: Mapping[str, Mapping[str, Any]]) -> None:
    for method, row in rows.items():
        print(judged(f"{method}: seeds that reach the aim", row["reached"], len(row["leak@100"])))
