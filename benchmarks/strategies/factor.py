"""Experiments on FACTOR (Muhlgay et al. 2023, arXiv:2307.06908): beginnings of texts, and four sentences of which one
goes on with what is true. `--factor` is one of its files, github.com/AI21Labs/factor, `data/expert_factor.csv`."""

from __future__ import annotations

import csv
from functools import partial
from typing import NamedTuple

from benchmarks.real.setup import GEMMA, SMALL
from benchmarks.strategies.bench import Bench, Json, Target, scored
from benchmarks.strategies.finding import Finding, compared
from benchmarks.strategies.table import Experiment

TEXTS = 60  # the first: a processor scores them in minutes
LONGEST = 1200  # characters of a beginning: all of them fit into the engine's 512 tokens
# The authors' for FACTOR. Their mask stays, on their side alone as in their code.
KEYS = {"alpha": 0.1, "share": 0.08}


class Text(NamedTuple):
    """`sentences`: the true one first."""

    beginning: str
    sentences: list[str]


def texts(bench: Bench) -> list[Text]:
    """As the authors of SH2 and of DoLa read the file: a space stands before each sentence."""
    assert bench.factor is not None, "experiments on FACTOR are not begun without its file"
    with bench.factor.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    named = ("completion", "contradiction_0", "contradiction_1", "contradiction_2")
    found = [Text(row["turncated_prefixes"], [f" {row[name]}" for name in named]) for row in rows]
    return [text for text in found if len(text.beginning) <= LONGEST][:TEXTS]


def hesitation(model: str, bench: Bench) -> list[Finding]:
    asked = texts(bench)
    subjects: dict[str, Target] = {"ours": {"strategy": "hesitation", "base": "model", **KEYS}, "plain": "model"}
    bodies = {
        name: [scored(made, text.sentences, prompt=text.beginning) for text in asked] for name, made in subjects.items()
    }
    found = bench.ask_real(model, "/score", bodies)
    right = {name: [is_right(answer) for answer in answers] for name, answers in found.items()}
    measure = "true sentence the likeliest of four"
    return [compared("texts go on with what is true", measure, "the model alone", right["ours"], right["plain"])]


def is_right(answer: Json) -> float:
    """Token by token, so that every one behind the mask counts (-9999 each, as -1000 in the authors' code), and a
    sentence with one of them is no tie with those that have many."""
    true, *others = (sum(entry["token_logprobs"]) for entry in answer["data"])
    return float(all(true > other for other in others))


EXPERIMENTS = {
    f"hesitation-factor-{model}": Experiment(
        "hesitation", f"real: {model}, FACTOR", partial(hesitation, model), real=True, texts=True
    )
    for model in (GEMMA, SMALL)
}
