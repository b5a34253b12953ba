"""Proxy-tuning on GSM8K: style from a small expert, arithmetic from the larger base.

An answer counts where the number behind `####` is right, a form that the untuned models do not write. A LoRA expert is
trained on the 0.5B by `motet train` and steers the 1.5B at α = 1, fixed beforehand; all members read the question
through their own chat templates; beside that, the two untuned ones read it as plain text, as base models would, where
their own style of answering weighs less. The composition is set against the base, the expert alone, the 1.5B tuned by
the very same recipe, and the base told the form and shown four examples; a second expert has its loss taken on the
composition.

**Gap closed** is (composed − base) / (tuned − base), its interval bootstrapped over questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.real.exam import PROMPTED, Exam, both, large_alone
from benchmarks.real.grades import Grades, difference
from benchmarks.real.interval import bootstrapped
from benchmarks.real.judge import judged
from benchmarks.real.replies import System
from benchmarks.real.setup import LARGE, Setup
from benchmarks.real.trained import trained
from motet.evaluation.measures.answers import gap_closed

GAP_AIM = 0.88  # what Liu et al. 2024 (arXiv:2401.08565) close on average with a 70B base; 0.91 with a 13B
EXPECTED = f"""\
expected: the base alone near 0, since it does not write the form; the expert in form, but worse at arithmetic than the
tuned 1.5B; the composition above the expert alone, with a gap closed of at least {GAP_AIM}; trained through the
composition no worse than the plain expert in it."""


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """Sits `wanted` systems, all of them where it is empty; results are saved after each."""
    exam = Exam(setup)
    print(f"{EXPECTED}\nanswers have room for {exam.max_tokens} tokens", flush=True)
    systems = _systems(exam)
    grades: dict[str, Grades] = {}
    for name in sorted(systems, key=list(systems).index):
        if not wanted or name in wanted:
            grades[name] = exam.sat_by(systems[name]())
            setup.save("gsm8k", _results(exam, grades))
    for line in _verdicts(grades):
        print(line)
    return setup.save("gsm8k", _results(exam, grades))


PLAIN = "composed, untuned asked plainly"
NAMES = ("base", "base prompted", "expert alone", "composed", PLAIN, "tuned directly", "composed, trained through")


def _systems(exam: Exam) -> dict[str, Callable[[], System]]:
    """Each system as it is needed: what it is made of is trained when it is asked for."""
    setup, count = exam.setup, len(exam.answers)

    def expert(recipe: str) -> Path:
        settings = {"root": setup.models.resolve(), "data.train.files": f"[{exam.training_file.resolve()}]"}
        return trained(f"gsm8k-{recipe}", (exam.folder / f"{recipe}-{count}").resolve(), settings, setup.threads)

    def composed(recipe: str, template: str = "chat") -> System:
        members = {**both(setup), "expert": expert(recipe)}
        base, antiexpert = ({"model": model, "template": template} for model in ("large", "small"))
        fields = {"strategy": "proxy_tuning", "base": base, "expert": "expert", "antiexpert": antiexpert, "alpha": 1.0}
        return System(f"composed-{recipe}-{template}-{count}", members, {"composition": fields})

    return {
        "base": lambda: large_alone(setup, "base", {}),
        "base prompted": lambda: large_alone(setup, "base-prompted", PROMPTED),
        "expert alone": lambda: System(f"expert-{count}", {"expert": expert("expert")}, {"model": "expert"}),
        "composed": lambda: composed("expert"),
        PLAIN: lambda: composed("expert", "plain"),
        "tuned directly": lambda: System(f"tuned-{count}", {"tuned": expert("tuned")}, {"model": "tuned"}),
        "composed, trained through": lambda: composed("through"),
    }


def gaps(grades: Mapping[str, Grades]) -> dict[str, dict[str, Any]]:
    """Gap closed by every system that is neither end of it; nothing before both ends are known."""
    if not {"base", "tuned directly"} <= grades.keys():
        return {}
    base, tuned = grades["base"].right, grades["tuned directly"].right
    return {
        name: asdict(bootstrapped(gap_closed, base, row.right, tuned))
        for name, row in grades.items()
        if name not in ("base", "tuned directly")
    }


def differences(grades: Mapping[str, Grades]) -> dict[str, dict[str, Any]]:
    """Accuracy of the composition less that of what it should beat."""
    pairs = [("composed", "expert alone"), ("composed", "base prompted"), ("composed, trained through", "composed")]
    return {
        f"{better} − {worse}": asdict(difference(grades[better], grades[worse]))
        for better, worse in pairs
        if {better, worse} <= grades.keys()
    }


def _results(exam: Exam, grades: Mapping[str, Grades]) -> dict[str, Any]:
    return {
        "base": LARGE,
        "training answers": len(exam.answers),
        "questions": len(exam.questions),
        "max_tokens": exam.max_tokens,
        "alpha": 1.0,
        "systems": {name: row.as_json() for name, row in grades.items()},
        "gap closed": gaps(grades),
        "differences": differences(grades),
    }


def _verdicts(grades: Mapping[str, Grades]) -> list[str]:
    lines = [f"{name:28} {row}" for name, row in grades.items()]
    for name, gap in gaps(grades).items():
        interval = f"[{gap['low']}, {gap['high']}], undefined in {gap['undefined']:.1%} of draws"
        lines.append(f"gap closed by {name}: {gap['value']} {interval}")
    if "composed" in gaps(grades):
        lines.append(judged("gap closed by the composition", gaps(grades)["composed"]["value"], GAP_AIM))
    lines += [judged(name, row["value"], 0.0) + f" [{row['low']:.3f}, {row['high']:.3f}]"
              for name, row in differences(grades).items()]  # fmt: skip
    return lines
