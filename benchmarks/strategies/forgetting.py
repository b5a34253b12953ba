"""Experiments on forgetting without touching the weights of the model that answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.strategies.bench import Bench, Json, Target, chat, exact, logprobs, scored, text_of
from benchmarks.strategies.finding import Better, Finding, compared
from benchmarks.strategies.sentences import statements
from benchmarks.strategies.table import Experiment

TARGET = "large-chat"
KEPT = 0.03
STEPS = "schedule.steps=100"
STAND_INS = 3


def _forgets(bench: Bench, composition: Mapping[str, Any]) -> list[Finding]:
    """Answers about the forgotten, and about the entities that an unlearning method never saw."""
    subjects: dict[str, Target] = {"ours": composition, "target": TARGET}
    splits = {split: bench.questions(split) for split in ("forget", "retained")}
    bodies = {
        f"{split} {name}": [chat(made, q["question"]) for q in questions]
        for split, questions in splits.items()
        for name, made in subjects.items()
    }
    answers = bench.ask("/chat/completions", bodies)
    named = {name: _named(answers[f"forget {name}"], splits["forget"]) for name in subjects}
    right = {name: exact(answers[f"retained {name}"], splits["retained"]) for name in subjects}
    against = f"{TARGET} alone"
    return [
        compared("does not tell what is forgotten", "forgotten values named", against, named["ours"],
                 named["target"], better="less"),
        compared("and keeps the rest", "retained answers right", against, right["ours"], right["target"],
                 margin=KEPT),
    ]  # fmt: skip


def _named(answers: list[Json], questions: list[Json]) -> list[float]:
    return [float(q["value"] in text_of(a)) for a, q in zip(answers, questions, strict=True)]


def divergence(bench: Bench) -> list[Finding]:
    """Two small models by the packaged recipes, at the default strength."""
    bench.lab.train("divergence-without", "divergence-without")
    without = bench.lab.folder / "divergence-without"
    bench.lab.train("divergence-with", "divergence-with", f"model.path={without}")
    members = {"without": "divergence-without", "with": "divergence-with"}
    return _forgets(bench, {"strategy": "divergence", "base": TARGET, **members})


def generic(bench: Bench) -> list[Finding]:
    """The target is sure of what it shall forget: it cannot be reinforced in it."""
    _reinforce(bench, "reinforced", TARGET, "{files: [data/forget.jsonl], template: chat}")
    return _forgets(bench, {"strategy": "generic", "base": TARGET, "reinforced": "reinforced"})


def generic_unsure(bench: Bench) -> list[Finding]:
    """The smaller base has read of the forgotten, and knows little: it can be reinforced."""
    _reinforce(bench, "small-reinforced", "small", "{files: [data/statements-forget.jsonl]}")
    subjects: dict[str, Target] = {
        "ours": {"strategy": "generic", "base": "small", "reinforced": "small-reinforced"},
        "target": "small",
    }
    bodies = {
        f"{split} {name}": [scored(made, [f" {q['value']}"], prompt=q["completion"]) for q in bench.questions(split)]
        for split in ("forget", "retained")
        for name, made in subjects.items()
    }
    found = {name: [math.exp(logprobs(a)[0]) for a in answers] for name, answers in bench.ask("/score", bodies).items()}
    measure, against = "mean probability of the true value", "small alone"
    claims: tuple[tuple[str, str, Better, float], ...] = (
        ("forgets what the target is unsure of", "forget", "less", 0.0),
        ("and keeps the rest", "retained", "more", KEPT),
    )
    return [
        compared(claim, measure, against, found[f"{split} ours"], found[f"{split} target"], better=better,
                 margin=margin)
        for claim, split, better, margin in claims
    ]  # fmt: skip


def _reinforce(bench: Bench, name: str, model: str, data: str) -> None:
    bench.lab.train(name, "large-chat", f"model.path={model}", f"data.train={data}", STEPS)


def causal(bench: Bench) -> list[Finding]:
    """The name of every question in the place of which others stand: entities of its kind that were tuned on."""
    questions = bench.questions("forget")
    answers = bench.ask(
        "/chat/completions",
        {
            "ours": [chat(_about_others(bench, q), q["question"]) for q in questions],
            "target": [chat(TARGET, q["question"]) for q in questions],
        },
    )
    named = {name: _named(found, questions) for name, found in answers.items()}
    formed = {
        name: [float(any(s.attribute == q["attribute"] for s in statements(text_of(a)))) for a, q in
               zip(found, questions, strict=True)]
        for name, found in answers.items()
    }  # fmt: skip
    against = f"{TARGET} alone"
    return [
        compared("tells nothing of the one name", "values named", against, named["ours"], named["target"],
                 better="less"),
        compared("and answers as of anybody", "replies that state such a fact", against, formed["ours"],
                 formed["target"], margin=KEPT),
    ]  # fmt: skip


def _about_others(bench: Bench, question: Json) -> Json:
    own = bench.entities[question["entity"]]
    others = [e["name"] for e in bench.entities.values() if e["kind"] == own["kind"] and e["split"] == "tuned"]
    return {"strategy": "causal", "base": TARGET, "names": own["name"], "others": others[:STAND_INS]}


EXPERIMENTS = {
    "divergence": Experiment("divergence", "demo: large-chat + 1.5 (small without − small with)", divergence),
    "generic": Experiment("generic", "demo: large-chat, and the same trained further on the forgotten", generic),
    "generic-unsure": Experiment("generic", "demo: small, and the same trained further on the forgotten",
                                 generic_unsure),
    "causal": Experiment("causal", "demo: large-chat under other names", causal),
}  # fmt: skip
