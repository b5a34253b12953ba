"""Experiments on ensembles, and on text that is contrasted with a weaker model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.strategies.bench import (
    Bench,
    Json,
    Target,
    chat,
    complete,
    confidence,
    exact,
    logprobs,
    scored,
    text_of,
    trace_of,
)
from benchmarks.strategies.finding import Finding, compared, ratio, stacked
from benchmarks.strategies.sentences import statements
from benchmarks.strategies.table import Experiment
from motet.evaluation.measures.statistics import expected_calibration_error

MEMBERS = ("large-chat", "retain-only")  # two models of one size, each from weights of its own
BASES = ("large", "small")
LONG = 96  # tokens


def calibration(items: NDArray[np.float64]) -> float:
    """(n, 2) of confidence and whether it was right: expected calibration error."""
    return expected_calibration_error(items[:, 0].tolist(), [bool(hit) for hit in items[:, 1]]) or 0.0


def _better_member(items: dict[str, NDArray[np.float64]], figure: str) -> str:
    """The member with the smaller `figure` ("calibration" or the mean)."""
    of = calibration if figure == "calibration" else np.mean
    return min(MEMBERS, key=lambda name: float(of(items[name])))


def mixture(bench: Bench) -> list[Finding]:
    """Half of the questions can be answered, the other half are about nobody: there a member makes something up."""
    questions = [*bench.questions("held_out"), *bench.records("unknown")[: bench.limit]]
    subjects: dict[str, Target] = {name: name for name in MEMBERS}
    subjects["ours"] = {"strategy": "mixture", "members": list(MEMBERS)}
    bodies = {name: [chat(made, q["question"], logprobs=True) for q in questions] for name, made in subjects.items()}
    answers = bench.ask("/chat/completions", bodies)
    right = {name: exact(found, questions) for name, found in answers.items()}
    items = {
        name: stacked([(confidence(a), hit) for a, hit in zip(found, right[name], strict=True)])
        for name, found in answers.items()
    }
    better = _better_member(items, "calibration")
    known = len(bench.questions("held_out"))
    return [
        compared(
            "an ensemble is better calibrated", "expected calibration error of answers",
            f"the better calibrated member, {better}", items["ours"], items[better], better="less",
            statistic=calibration,
        ),
        compared(
            "and as often right", "answers right, of those that can be known", f"the same member, {better}",
            right["ours"][:known], right[better][:known], margin=0.02,
        ),
    ]  # fmt: skip


def product(bench: Bench) -> list[Finding]:
    """How surprising the right answers are: in nats, of a whole answer."""
    questions = bench.questions("held_out")
    subjects: dict[str, Target] = {name: name for name in MEMBERS}
    subjects["ours"] = {"strategy": "product", "members": [{"model": name, "weight": 0.5} for name in MEMBERS]}
    bodies = {name: [_scored(made, q) for q in questions] for name, made in subjects.items()}
    nll = {name: np.array([-logprobs(a)[0] for a in found]) for name, found in bench.ask("/score", bodies).items()}
    better = _better_member(nll, "mean")
    measure = "negative log-likelihood of the right answer, nats"
    return [
        compared("members correct each other", measure, f"the better member, {better}", nll["ours"], nll[better],
                 better="less"),
    ]  # fmt: skip


def _scored(target: Target, question: Json) -> Json:
    messages = [{"role": "user", "content": question["question"]}]
    return scored(target, [question["answer"]], messages=messages)


def _biographies(bench: Bench, subjects: dict[str, Target]) -> dict[str, list[Json]]:
    """Long texts about entities that all have read of, drawn at temperature 1, the k-th with seed k."""
    names = list(dict.fromkeys(question["entity"] for question in bench.questions("held_out")))
    drawn = {"temperature": 1.0, "max_tokens": LONG, "trace": True}
    bodies = {
        subject: [complete(made, name, seed=seed, **drawn) for seed, name in enumerate(names)]
        for subject, made in subjects.items()
    }
    found = bench.ask("/completions", bodies)
    return {name: [{**answer, "about": about} for answer, about in zip(answers, names, strict=True)]
            for name, answers in found.items()}  # fmt: skip


def _truths(bench: Bench, answers: Sequence[Json]) -> NDArray[np.float64]:
    """(texts, 2): statements that are true, and all of them."""
    told = [statements(f"{answer['about']} {text_of(answer)}") for answer in answers]
    return stacked([(sum(one.is_true(bench.entities) for one in text), len(text)) for text in told])


def sparse(bench: Bench) -> list[Finding]:
    """Long texts by both bases, composed at every token or only where they disagree."""
    members = list(BASES)
    subjects: dict[str, Target] = {name: {"strategy": name, "members": members} for name in ("sparse", "mixture")}
    found = _biographies(bench, subjects)
    true = {name: _truths(bench, answers) for name, answers in found.items()}
    composed = [[float(token["alpha"]) for token in trace_of(answer)] for answer in found["sparse"]]
    shares = stacked([(sum(alphas), len(alphas)) for alphas in composed])
    every = np.ones_like(shares)
    against = "mixture: composed at every token"
    return [
        compared(
            "long answers are no worse than of an ensemble at every token", "statements that are true", against,
            true["sparse"], true["mixture"], margin=0.02, statistic=ratio,
        ),
        compared("at few composed tokens", "tokens that were composed", against, shares, every, better="less",
                 statistic=ratio),
    ]  # fmt: skip


def contrastive(bench: Bench) -> list[Finding]:
    """Open-ended text, the home of contrastive decoding."""
    ours: Json = {"strategy": "contrastive", "base": "large", "amateur": "small"}
    found = _biographies(bench, {"ours": ours, "base": {"strategy": "product", "members": ["large"]}})
    true = {name: _truths(bench, answers) for name, answers in found.items()}
    return [
        compared(
            "open-ended text is better", "statements of drawn texts that are true", "the base alone",
            true["ours"], true["base"], statistic=ratio,
        )
    ]  # fmt: skip


EXPERIMENTS = {
    "contrastive-text": Experiment("contrastive", "demo: large against small", contrastive),
    "product": Experiment("product", f"demo: {' and '.join(MEMBERS)}", product),
    "mixture": Experiment("mixture", f"demo: {' and '.join(MEMBERS)}", mixture),
    "sparse": Experiment("sparse", f"demo: {' and '.join(BASES)}", sparse),
}
