"""Contrastive decoding on GSM8K: the 1.5B against the 0.5B, greedy and sampled.

O'Brien and Lewis 2023 (arXiv:2309.09117): α = 0.1, β = 0.5; both models read the same four examples, since neither
writes the form unasked. The paper finds GSM8K to go up on LLaMA of 7 to 65 billion parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.real.exam import PROMPTED, Exam, both, large_alone
from benchmarks.real.grades import Grades, difference
from benchmarks.real.judge import judged
from benchmarks.real.replies import System
from benchmarks.real.setup import LARGE, SMALL, Setup

ALPHA, BETA, TEMPERATURE = 0.1, 0.5, 0.7
NAMES = ("greedy", "contrastive greedy", "sampled", "contrastive sampled")
EXPECTED = """\
expected: as in the paper, contrastive decoding above plain decoding, more so sampled than greedy; its amateurs are
10 to 40 times smaller than its experts, ours is a third."""


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """Sits `wanted` systems, all of them where it is empty; results are saved after each."""
    exam = Exam(setup)
    print(EXPECTED, flush=True)
    grades: dict[str, Grades] = {}
    for name, system in _systems(setup).items():
        if not wanted or name in wanted:
            grades[name] = exam.sat_by(system)
            setup.save("contrastive", _results(exam, grades))
    for name, row in _differences(grades).items():
        print(judged(name, row["value"], 0.0) + f" [{row['low']:.3f}, {row['high']:.3f}]")
    return setup.save("contrastive", _results(exam, grades))


def _systems(setup: Setup) -> dict[str, System]:
    fields = {"strategy": "contrastive", "base": "large", "amateur": "small", "alpha": ALPHA, "beta": BETA}
    contrastive = {"composition": fields, **PROMPTED}
    return {
        "greedy": large_alone(setup, "base-prompted", PROMPTED),
        "contrastive greedy": System("contrastive", both(setup), contrastive),
        "sampled": large_alone(setup, "base-prompted-sampled", PROMPTED, TEMPERATURE),
        "contrastive sampled": System("contrastive-sampled", both(setup), contrastive, TEMPERATURE),
    }


def _differences(grades: Mapping[str, Grades]) -> dict[str, dict[str, Any]]:
    pairs = [("contrastive greedy", "greedy"), ("contrastive sampled", "sampled")]
    return {
        f"{ours} − {plain}": asdict(difference(grades[ours], grades[plain]))
        for ours, plain in pairs
        if {ours, plain} <= grades.keys()
    }


def _results(exam: Exam, grades: Mapping[str, Grades]) -> dict[str, Any]:
    return {
        "models": [LARGE, SMALL],
        "settings": {"alpha": ALPHA, "beta": BETA, "temperature": TEMPERATURE},
        "questions": len(exam.questions),
        "systems": {name: row.as_json() for name, row in grades.items()},
        "differences": _differences(grades),
    }
