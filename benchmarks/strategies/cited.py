"""Rows that other committed results answer already: their figures are read from the files, not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.strategies.bench import Bench
from benchmarks.strategies.finding import Finding, compared, proportions
from benchmarks.strategies.table import Experiment

RESULTS = Path(__file__).parent.parent / "results"
DEMO = "motet demo --seed N --json benchmarks/results/demo-seedN.json (N = 0, 1, 2)"
REAL = "python -m benchmarks.real --models FOLDER --results benchmarks/results --only {stage}{more} (real-{stage}.json)"
GAP = 0.88  # of the gap to direct tuning that the paper's largest pair closes
KEPT = 0.03
CLOSES = f"and closes {100 * GAP:.0f} % of the gap to direct tuning"


def _boards() -> list[dict[str, Any]]:
    return [json.loads(file.read_text())["scoreboard"] for file in sorted(RESULTS.glob("demo-seed*.json"))]


def _pooled(split: str, part: str, row: str) -> NDArray[np.float64]:
    """Of all seeds: who was right is not kept, how many were is."""
    boards = _boards()
    return np.concatenate([proportions(board[part][row], board["num_questions"][split]) for board in boards])


def _held_out(claim: str, measure: str, against: str, ours: str, theirs: str, margin: float = 0.0) -> Finding:
    items = [_pooled("held_out", "exact_match", row) for row in (ours, theirs)]
    return compared(claim, measure, against, *items, margin=margin, paired=False)


def _real(stage: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"real-{stage}.json").read_text())["results"]


def _right(stage: str, system: str) -> list[float]:
    return [float(hit) for hit in _real(stage)["systems"][system]["right"]]


def proxy_tuning(bench: Bench) -> list[Finding]:
    """The larger base answers nothing by itself, so that what is lost is a share of the tuned model's accuracy."""
    assert not _pooled("held_out", "exact_match", "large").any()
    lost = (1 - GAP) * float(_pooled("held_out", "exact_match", "large-chat").mean())
    measure = "answers right"
    return [
        _held_out("a large base takes on what a small model learned", measure, "the small expert alone",
                  "large-proxy", "small-chat"),
        _held_out(CLOSES, measure, "the larger model tuned directly",
                  "large-proxy", "large-chat", round(lost, 3)),
    ]  # fmt: skip


def proxy_tuning_real(bench: Bench) -> list[Finding]:
    ours, expert, tuned = (_right("gsm8k", system) for system in ("composed", "expert alone", "tuned directly"))
    assert not any(_right("gsm8k", "base"))
    lost = round((1 - GAP) * sum(tuned) / len(tuned), 3)
    measure = "GSM8K answers right"
    return [
        compared("a large base takes on what a small model learned", measure, "the small expert alone", ours, expert),
        compared(CLOSES, measure, "the 1.5B tuned directly", ours,
                 tuned, margin=lost),
    ]  # fmt: skip


def eft(bench: Bench) -> list[Finding]:
    return [
        _held_out(
            "facts come from the scale of pre-training, not of tuning", "answers right",
            "small pre-training, large tuning", "large-proxy", "small-eft-down",
        )
    ]  # fmt: skip


def contrastive(bench: Bench) -> list[Finding]:
    claim, measure, against = "short facts, which are not its home", "answers right", "large-chat alone"
    return [
        _held_out(f"{claim}: greedy", measure, against, "large-contrastive", "large-chat"),
        _held_out(f"{claim}: drawn", measure, against, "large-contrastive, sampled", "large-chat, sampled"),
    ]


def contrastive_real(bench: Bench) -> list[Finding]:
    claim, measure, against = "reasoning is better", "GSM8K answers right", "the 1.5B alone"
    return [
        compared(f"{claim}: {how}", measure, against, _right("contrastive", f"contrastive {how}"),
                 _right("contrastive", how))
        for how in ("greedy", "sampled")
    ]  # fmt: skip


def unlearn(bench: Bench) -> list[Finding]:
    """The weight was chosen on other seeds."""
    against = "large-chat alone"
    ours, theirs = ([_pooled(split, part, row) for split, part in
                     (("forget", "forget_value_named"), ("retained", "retained"))]
                    for row in ("large-unlearned", "large-chat"))  # fmt: skip
    return [
        compared("does not tell what is forgotten", "forgotten values named", against, ours[0], theirs[0],
                 better="less", paired=False),
        compared("and keeps the rest", "retained answers right", against, ours[1], theirs[1], margin=KEPT,
                 paired=False),
    ]  # fmt: skip


EXPERIMENTS = {
    "proxy_tuning": Experiment("proxy_tuning", "demo: large + (small-chat − small)", proxy_tuning, cites=DEMO),
    "proxy_tuning-gsm8k": Experiment(
        "proxy_tuning", "real: qwen-1.5b + (0.5B expert − qwen-0.5b)", proxy_tuning_real,
        cites=REAL.format(stage="gsm8k", more=" --train-answers 256"),
    ),
    "eft-grid": Experiment("eft", "demo: both directions of scale", eft, cites=DEMO),
    "contrastive": Experiment("contrastive", "demo: large-chat against small-chat", contrastive, cites=DEMO),
    "contrastive-gsm8k": Experiment(
        "contrastive", "real: qwen-1.5b against qwen-0.5b", contrastive_real,
        cites=REAL.format(stage="contrastive", more=""),
    ),
    "unlearn": Experiment("unlearn", "demo: large-chat − 1.2 forget-assistant", unlearn, cites=DEMO),
}  # fmt: skip
