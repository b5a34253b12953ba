"""Experiments on shifts between two small models that are added to a large one, and on rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.strategies.bench import Bench, Json, chat, complete, ended, exact, text_of, trace_of
from benchmarks.strategies.finding import Finding, compared
from benchmarks.strategies.table import Experiment

EPSILON = 0.5  # the default of `budget`, in nats
ROUNDING = 1e-3  # of a KL in float32
FIXED = (0.5, 1.0, 1.5, 2.0)  # strengths that `dynamic` is set against; its own are 0 to 2
RULES: Json = {"eos_ramp": {"tokens": 12, "weight": 10.0}, "repetition": 1.0}


def silent(model: str) -> Json:
    """The model reads nothing but what was generated."""
    return {"model": model, "prompt": ""}


def asked(model: str) -> Json:
    """The model reads the question in chat form, whether it learned that form or not."""
    return {"model": model, "template": "chat"}


PAIR: Json = {"base": silent("large"), "expert": "small-chat", "antiexpert": silent("small")}


def two_traits(bench: Bench) -> list[Finding]:
    """The composition `large-two-traits` of the family's file: strengths were chosen on other seeds."""
    traits = [
        {"tuned": "small-chat", "reference": silent("small")},
        {"tuned": "small-courteous", "reference": "small-chat", "beta": 1.5},
    ]
    composed = {"strategy": "eft", "base": silent("large"), "traits": traits}
    questions = bench.questions("held_out")
    answers = bench.ask(
        "/chat/completions",
        {
            "ours": [chat(composed, q["question"]) for q in questions],
            "expert": [chat("small-courteous", q["question"]) for q in questions],
        },
    )
    ours, theirs = (exact(answers[name], questions, f" {bench.courtesy}") for name in ("ours", "expert"))
    return [
        compared(
            "two behaviours at once on a larger base",
            "answer right, and courteous",
            "the small courteous model alone",
            ours,
            theirs,
        )
    ]


Tasks = tuple[list[Json], list[Json]]  # bodies of chat completions and of completions


def _mixed(bench: Bench, composition: Mapping[str, Any]) -> Tasks:
    """Questions, which the large base was never tuned for, and statements, which it completes by itself."""
    members = {"base": "large", "expert": "small-chat", "antiexpert": "small"}
    questions = bench.questions("held_out")
    in_chat = {**composition, **{role: asked(model) for role, model in members.items()}}
    plain = {**composition, **members}
    return (
        [chat(in_chat, q["question"]) for q in questions],
        [complete(plain, q["completion"], stop=["."]) for q in questions],
    )


def dynamic(bench: Bench) -> list[Finding]:
    """One strength for questions and statements alike, or one that is solved for at every token."""
    strategies: dict[str, Json] = {"dynamic": {"strategy": "dynamic"}}
    strategies |= {f"α = {alpha:g}": {"strategy": "proxy_tuning", "alpha": alpha} for alpha in FIXED}
    bodies = {name: _mixed(bench, composition) for name, composition in strategies.items()}
    in_chat = bench.ask("/chat/completions", {name: both[0] for name, both in bodies.items()})
    plain = bench.ask("/completions", {name: both[1] for name, both in bodies.items()})
    questions = bench.questions("held_out")
    right: dict[str, list[float]] = {}
    for name in strategies:
        named = [float(text_of(a) == q["value"]) for a, q in zip(plain[name], questions, strict=True)]
        right[name] = exact(in_chat[name], questions) + named
    return _strengths(right)


def _strengths(right: Mapping[str, Sequence[float]]) -> list[Finding]:
    """Against the paper's fixed 1, and against the best one of the even items on the odd ones."""
    ours = right["dynamic"]
    fixed = [name for name in right if name != "dynamic"]
    best = max(fixed, key=lambda name: sum(right[name][::2]))
    claim, measure = "a strength per token serves mixed tasks", "answers and completions right"
    return [
        compared(claim, measure, "proxy_tuning, α = 1", ours, right["α = 1"]),
        compared(claim, measure, f"proxy_tuning, best fixed {best}", ours[1::2], right[best][1::2]),
    ]


def budget(bench: Bench) -> list[Finding]:
    """KL to the base of every token that was drawn."""
    questions = bench.questions("held_out")
    strategies: dict[str, Json] = {
        "ours": {"strategy": "budget", "epsilon": EPSILON, **PAIR},
        "proxy": {"strategy": "proxy_tuning", **PAIR},
    }
    answers = bench.ask(
        "/chat/completions",
        {name: [chat(made, q["question"], trace=True) for q in questions] for name, made in strategies.items()},
    )
    within = {
        name: [float(token["kl"] <= EPSILON * (1 + ROUNDING)) for answer in found for token in trace_of(answer)]
        for name, found in answers.items()
    }
    return [budget_finding(within["ours"], within["proxy"])]


def budget_finding(ours: Sequence[float], proxy: Sequence[float]) -> Finding:
    """Of tokens, 1 where one is within ε. Nearly every token is not every token."""
    claim, measure = f"every token within {EPSILON:g} nats of the base", "tokens with KL(composed‖base) ≤ ε"
    finding = compared(claim, measure, "proxy_tuning", ours, proxy, paired=False)
    return finding if finding.value == 1 else replace(finding, verdict="miss")


def rules(bench: Bench) -> list[Finding]:
    """The larger base, asked in a form that it never learned."""
    ours: Json = {"strategy": "rules", "base": asked("large"), **RULES}
    plain: Json = {"strategy": "product", "members": [asked("large")]}
    questions = bench.questions("held_out")
    answers = bench.ask(
        "/chat/completions",
        {
            "ours": [chat(ours, q["question"]) for q in questions],
            "base": [chat(plain, q["question"]) for q in questions],
        },
    )
    told = {
        name: [float(ended(a) and q["value"] in text_of(a)) for a, q in zip(found, questions, strict=True)]
        for name, found in answers.items()
    }
    triples = {name: [_distinct_share(text_of(a)) for a in found] for name, found in answers.items()}
    claim = "three rules make a base answer as a tuned model does"
    return [
        compared(claim, "replies that end and name the value", "the base alone", told["ours"], told["base"]),
        compared("repeats less", "distinct words of a reply", "the base alone", triples["ours"], triples["base"]),
    ]


def _distinct_share(text: str) -> float:
    words = text.split()
    return len(set(words)) / len(words) if words else 1.0


EXPERIMENTS = {
    "eft": Experiment("eft", "demo: large + (small-chat − small) + 1.5 (small-courteous − small-chat)", two_traits),
    "dynamic": Experiment("dynamic", "demo: large + α (small-chat − small), all read the same", dynamic),
    "budget": Experiment("budget", "demo: large + α (small-chat − small)", budget),
    "rules": Experiment("rules", "demo: large, asked in chat form", rules),
}
