"""Experiments on who writes a token: a small model or a large one, and how sure of it the model shall be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.strategies.bench import Bench, Json, Target, chat, exact, logprobs, scored, text_of, trace_of
from benchmarks.strategies.finding import Finding, compared, ratio, stacked
from benchmarks.strategies.table import Experiment

LARGE, SMALL, ROUTER, TEMPERED, NEAR = "large-chat", "small-chat", "router", "tempered", "near"
CLUSTERS = ("refusals", "courteous")  # an adapter was trained on each, as the head of `similarity-head` has it
KEPT = 0.02  # of all answers may be lost by a method that is said to keep them
THRESHOLD = 0.5  # of `routed`, its default


def cascade(bench: Bench) -> list[Finding]:
    """By the default: the small model writes what it gives a probability of 0.7 or more."""
    composition = {"strategy": "cascade", "base": LARGE, "small": SMALL}
    return _shared(bench, composition, lambda token: 1 - float(token["alpha"]))


def routed(bench: Bench) -> list[Finding]:
    """A gate on the small tuned model, trained on the tuned questions; asked are others."""
    data = "data.train={files: [data/tuned.jsonl], template: chat}"
    bench.lab.train(ROUTER, "gate", f"model.path={SMALL}", f"members={{large: {{path: {LARGE}}}}}", data,
                    f"expert.partner={LARGE}")  # fmt: skip
    composition = {"strategy": "routed", "base": ROUTER, "assistant": LARGE, "threshold": THRESHOLD}
    return _shared(bench, composition, lambda token: float(token["head"] > THRESHOLD))


def _shared(bench: Bench, composition: Mapping[str, object], by_large: Callable[[Json], float]) -> list[Finding]:
    """Answers beside those of either model, and how many tokens the large one wrote."""
    questions = bench.questions("held_out")
    subjects: dict[str, Target] = {"large": LARGE, "small": SMALL}
    bodies = {name: [chat(made, q["question"]) for q in questions] for name, made in subjects.items()}
    bodies["ours"] = [chat(composition, q["question"], trace=True) for q in questions]
    answers = bench.ask("/chat/completions", bodies)
    right = {name: exact(found, questions) for name, found in answers.items()}
    wrote = [[by_large(token) for token in trace_of(answer)] for answer in answers["ours"]]
    shares = stacked([(sum(answer), len(answer)) for answer in wrote])
    measure = "answers right"
    return [
        compared("more right than the small model", measure, f"{SMALL} alone", right["ours"], right["small"]),
        compared("as right as the large model", measure, f"{LARGE} alone", right["ours"], right["large"], margin=KEPT),
        compared("at fewer of its tokens", "tokens that the large model wrote", f"{LARGE} alone", shares,
                 np.ones_like(shares), better="less", statistic=ratio),
    ]  # fmt: skip


def adaptive_temperature(bench: Bench) -> list[Finding]:
    """A head on the tuned large model; asked are entities that the head's training did not hold."""
    bench.lab.train(TEMPERED, "temperature-head")
    questions = bench.questions("retained")
    subjects: dict[str, Target] = {"ours": {"strategy": "adaptive_temperature", "base": TEMPERED}, "plain": LARGE}
    drawn = {
        name: [chat(made, q["question"], temperature=1.0, seed=seed) for seed, q in enumerate(questions)]
        for name, made in subjects.items()
    }
    right = {name: exact(found, questions) for name, found in bench.ask("/chat/completions", drawn).items()}
    bodies = {
        name: [scored(made, [q["answer"]], messages=[{"role": "user", "content": q["question"]}]) for q in questions]
        for name, made in subjects.items()
    }
    nll = {name: [-logprobs(a)[0] for a in found] for name, found in bench.ask("/score", bodies).items()}
    against = f"{LARGE} at temperature 1"
    return [
        compared("temperatures that know the context: calibrated",
                 "negative log-likelihood of the right answer, nats", against, nll["ours"], nll["plain"],
                 better="less"),
        compared("and drawn answers are as right as they can be", "drawn answers right", against, right["ours"],
                 right["plain"]),
    ]  # fmt: skip


def adapters(bench: Bench) -> list[Finding]:
    """One adapter refuses what shall be forgotten, the other answers courteously; the prompt decides, in which neither
    stands: asked are tuned entities in other words, and the forgotten."""
    bench.lab.train(NEAR, "similarity-head")
    together = {**{name: [name] for name in CLUSTERS}, "both": list(CLUSTERS)}
    for name, parts in together.items():
        files = ", ".join(f"data/{part}.jsonl" for part in parts)
        data = f"data.train={{files: [{files}], template: chat}}"
        card = "expert={role: adapters, strategy: adapters}"
        bench.lab.train(f"adapter-{name}", "sft-lora", f"model.path={LARGE}", data, card)
    own = [f"adapter-{name}" for name in CLUSTERS]
    members = [{"model": NEAR, "weight": 0.5}, *({"model": name, "weight": 0.25} for name in own)]
    subjects: dict[str, Target] = {
        "ours": {"strategy": "adapters", "base": NEAR, "adapters": own},
        "even": {"strategy": "product", "base": NEAR, "members": members},
        "one": "adapter-both",
    }
    forgotten, asked = bench.questions("forget"), bench.questions("held_out")
    bodies = {name: [chat(made, q["question"]) for q in (*forgotten, *asked)] for name, made in subjects.items()}
    refusal = bench.records("refusals", folder="data")[0]["completion"].strip()
    right = {
        name: [float(text_of(answer) == refusal) for answer in found[: len(forgotten)]]
        + exact(found[len(forgotten) :], asked, f" {bench.courtesy}")
        for name, found in bench.ask("/chat/completions", bodies).items()
    }
    measure = "forgotten refused, others answered courteously"
    return [
        compared("more right than adapters that count alike", measure, "both adapters by half", right["ours"],
                 right["even"]),
        compared("and than one adapter of all data", measure, "one adapter trained on both", right["ours"],
                 right["one"], margin=KEPT),
    ]  # fmt: skip


EXPERIMENTS = {
    "cascade": Experiment("cascade", f"demo: {SMALL}, {LARGE}", cascade),
    "routed": Experiment("routed", f"demo: {SMALL} with a trained gate, {LARGE}", routed),
    "adaptive_temperature": Experiment(
        "adaptive_temperature", f"demo: {LARGE} with a trained head", adaptive_temperature
    ),
    "adapters": Experiment("adapters", f"demo: two adapters of {LARGE}, each of its prompts", adapters),
}
