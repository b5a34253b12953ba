"""Experiments on who writes a token: a small model or a large one, and how sure of it the model shall be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.strategies.bench import Bench, Json, Target, chat, exact, logprobs, scored, text_of, trace_of
from benchmarks.strategies.finding import Finding, compared, ratio, stacked
from benchmarks.strategies.table import Experiment
from motet.cli.data import cluster

LARGE, SMALL, ROUTER, TEMPERED = "large-chat", "small-chat", "router", "tempered"
ADAPTED, NEAR, LONGER = "adapted", "adapted-near", "adapted-longer"
SORTS = ("refusals", "courteous")  # what an adapter of all data learns
CLUSTERS = 4  # of its prompts
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
    """The paper's way: one adapter of all data, which is the base from there on; its training prompts in clusters; and
    on each of them an adapter that goes on from there. Some are to be refused, others answered courteously, which the
    words of a prompt do not tell. Asked are tuned entities in other words, and the forgotten."""
    folder = bench.lab.folder
    whole = [str(bench.lab.family / "data" / f"{name}.jsonl") for name in SORTS]
    _adapter(bench, ADAPTED, LARGE, whole, "tuning.merge=true", "expert={role: base}")
    parts = [folder / "clusters" / f"cluster-{number}.jsonl" for number in range(1, CLUSTERS + 1)]
    if not parts[0].parent.exists():
        cluster(whole, parts[0].parent, str(folder / ADAPTED), CLUSTERS, template="chat")
    files = f"data.train={{files: [{', '.join(map(str, parts))}], template: chat}}"
    named = f"objective.clusters=[{', '.join(part.stem for part in parts)}]"
    bench.lab.train(NEAR, "similarity-head", f"model.path={folder / ADAPTED}", named, files)
    own = [f"{ADAPTED}-{part.stem}" for part in parts]
    for name, part in zip(own, parts, strict=True):
        _adapter(bench, name, str(folder / NEAR), [str(part)])
    _adapter(bench, LONGER, str(folder / NEAR), whole)
    members = [{"model": NEAR, "weight": 0.5}, *({"model": name, "weight": 0.5 / CLUSTERS} for name in own)]
    subjects: dict[str, Target] = {
        "ours": {"strategy": "adapters", "base": NEAR, "adapters": own},
        "even": {"strategy": "product", "base": NEAR, "members": members},
        "one": LONGER,
    }
    forgotten, asked = bench.questions("forget"), bench.questions("held_out")
    bodies = {name: [chat(made, q["question"]) for q in (*forgotten, *asked)] for name, made in subjects.items()}
    refusal = bench.records(SORTS[0], folder="data")[0]["completion"].strip()
    right = {
        name: [float(text_of(answer) == refusal) for answer in found[: len(forgotten)]]
        + exact(found[len(forgotten) :], asked, f" {bench.courtesy}")
        for name, found in bench.ask("/chat/completions", bodies).items()
    }
    measure = "forgotten refused, others answered courteously"
    return [
        compared("more right than adapters that count alike", measure, "the same adapters, all alike", right["ours"],
                 right["even"]),
        compared("and than one adapter of all data", measure, "one adapter of all data, as many steps", right["ours"],
                 right["one"]),
    ]  # fmt: skip


def _adapter(bench: Bench, name: str, base: str, files: Sequence[str], *overrides: str) -> None:
    """At a rate for the larger model: at the recipe's, which is for the smaller one, all data are not learnt."""
    data = f"data.train={{files: [{', '.join(files)}], template: chat}}"
    card = "expert={role: adapters, strategy: adapters}"
    bench.lab.train(name, "sft-lora", f"model.path={base}", data, "optimizer.lr=1.0e-3", card, *overrides)


EXPERIMENTS = {
    "cascade": Experiment("cascade", f"demo: {SMALL}, {LARGE}", cascade),
    "routed": Experiment("routed", f"demo: {SMALL} with a trained gate, {LARGE}", routed),
    "adaptive_temperature": Experiment(
        "adaptive_temperature", f"demo: {LARGE} with a trained head", adaptive_temperature
    ),
    "adapters": Experiment("adapters", f"demo: {CLUSTERS} adapters of {LARGE}, each of a cluster of prompts", adapters),
}
