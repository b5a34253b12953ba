"""The demo's measurements: the same questions under each composition, through a running server.

Exact match counts a reply that is the tuned answer word by word and ends there. Everything is greedy but the two
rows that say "sampled". Nothing is chosen by looking at these numbers: see `operator_file`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motet.demo.client import Client, Reply, together

GAP_CLOSED_AIM = 0.95
FORGOTTEN_AIM = 0.0
RETAINED_KEPT_AIM = 0.97

SIDE_BY_SIDE = ("large", "small-chat", "large-proxy", "large-two-traits", "large-contrastive", "large-unlearned")


@dataclass(frozen=True, slots=True)
class Item:
    """A question of `world.json` and its right answers."""

    question: str
    answer: str
    completion: str
    value: str


@dataclass(frozen=True, slots=True)
class Aim:
    """A number that was aimed at, and whether it was reached; None where it can't be computed: a miss."""

    name: str
    value: float | None
    aim: float
    met: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One question under every model of `SIDE_BY_SIDE`."""

    question: str
    split: str
    answer: str
    replies: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scoreboard:
    """All measurements of one family; shares are in [0, 1].

    `exact_match` has a row per model over held-out questions; `completion` the value right when the answer's
    words before it are given; `forget` and `retained` a row per unlearning candidate.
    """

    seed: int
    num_questions: Mapping[str, int]
    exact_match: Mapping[str, float]
    completion: Mapping[str, float]
    gap_closed: Mapping[str, float | None]
    grid: Mapping[str, Mapping[str, float]]
    forget: Mapping[str, float]
    forget_value_named: Mapping[str, float]
    retained: Mapping[str, float]
    retained_kept: float | None
    aims: Sequence[Aim]
    samples: Sequence[Sample]


def gap_closed(base: float, composed: float, tuned: float) -> float | None:
    """(composed − base) / (tuned − base): 0 is the base alone, 1 the directly tuned larger model.

    None where the tuned model is not better than the base: there is no gap.
    """
    return round((composed - base) / (tuned - base), 4) if tuned > base else None


def share(hits: Sequence[bool]) -> float:
    """Share of true ones, rounded to 4 digits."""
    return round(sum(hits) / len(hits), 4)


def exact(replies: Sequence[Reply], items: Sequence[Item], ending: str = "") -> float:
    """Share of replies that are the answer (and `ending`) and end there."""
    return share(
        [reply.ended and reply.text == f"{item.answer}{ending}" for reply, item in zip(replies, items, strict=True)]
    )


def value_named(replies: Sequence[Reply], items: Sequence[Item]) -> float:
    """Share of replies in which the right value stands anywhere."""
    return share([item.value in reply.text for reply, item in zip(replies, items, strict=True)])


def completed(replies: Sequence[Reply], items: Sequence[Item]) -> float:
    """Share of completions that are the value."""
    return share([reply.text == item.value for reply, item in zip(replies, items, strict=True)])


class Measurement:
    """Asks one family's questions; replies are kept by model and split, so that nothing is asked twice."""

    def __init__(self, client: Client, world: Mapping[str, Any], limit: int) -> None:
        self.seed: int = world["seed"]
        self.courtesy: str = world["courtesy"]
        self.items = {split: _items(asked)[:limit] for split, asked in world["questions"].items()}
        self._client = client
        self._replies: dict[tuple[str, str], list[Reply]] = {}

    async def ask(self, model: str, split: str = "held_out") -> list[Reply]:
        """Greedy replies to a split's questions."""
        key = (model, split)
        if key not in self._replies:
            self._replies[key] = await together([self._client.chat(model, i.question) for i in self.items[split]])
        return self._replies[key]

    async def ask_one(self, model: str, split: str, k: int) -> Reply:
        """The reply to one question, asked now unless its whole split was asked before."""
        known = self._replies.get((model, split))
        return known[k] if known else await self._client.chat(model, self.items[split][k].question)

    async def sample(self, model: str) -> list[Reply]:
        """Replies to the held-out questions, sampled at temperature 1, question k with seed k."""
        held_out = self.items["held_out"]
        return await together([self._client.chat(model, i.question, seed) for seed, i in enumerate(held_out)])

    async def exact(self, model: str, split: str = "held_out") -> float:
        """Exact match of greedy replies."""
        return exact(await self.ask(model, split), self.items[split])

    async def complete(self, model: str) -> float:
        """Values right after the answer's first words, on the held-out questions."""
        held_out = self.items["held_out"]
        return completed(await together([self._client.complete(model, i.completion) for i in held_out]), held_out)


async def measure(
    client: Client, family: Path, limit: int = 200, progress: Callable[[str], None] = lambda _: None
) -> Scoreboard:
    """Measures everything, at most `limit` questions per row; `progress` is told what comes next."""
    measurement = Measurement(client, json.loads((family / "world.json").read_text(encoding="utf-8")), limit)
    progress("larger base, small expert, their composition, directly tuned larger model")
    exact_match = await _exact_match(measurement)
    progress("what the base models know")
    completion = {model: await measurement.complete(model) for model in ("large", "small")}
    progress("unlearning")
    forget, named, retained = await _unlearning(measurement)
    progress("side by side")
    return Scoreboard(
        seed=measurement.seed,
        num_questions={split: len(items) for split, items in measurement.items.items()},
        exact_match=exact_match,
        completion=completion,
        gap_closed=(closed := _gaps(exact_match)),
        grid=_grid(exact_match),
        forget=forget,
        forget_value_named=named,
        retained=retained,
        retained_kept=(kept := gap_closed(0.0, retained["large-unlearned"], retained["large-chat"])),
        aims=_aims(closed["large-proxy"], forget["large-unlearned"], kept),
        samples=await _samples(measurement),
    )


async def _exact_match(measurement: Measurement) -> dict[str, float]:
    greedy = ("large", "small", "small-chat", "large-proxy", "large-proxy-one-prompt", "small-eft-down")
    rows = {model: await measurement.exact(model) for model in (*greedy, "large-chat", "large-contrastive")}
    held_out = measurement.items["held_out"]
    for model in ("large-chat", "large-contrastive"):
        rows[f"{model}, sampled"] = exact(await measurement.sample(model), held_out)
    traits = await measurement.ask("large-two-traits")
    rows["large-two-traits, answer and courtesy"] = exact(traits, held_out, f" {measurement.courtesy}")
    return rows


def _gaps(exact_match: Mapping[str, float]) -> dict[str, float | None]:
    base, tuned = exact_match["large"], exact_match["large-chat"]
    composed = ("large-proxy", "large-proxy-one-prompt")
    return {model: gap_closed(base, exact_match[model], tuned) for model in composed}


def _grid(exact_match: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Emulated fine-tuning: scale of pre-training (rows) by scale of fine-tuning."""
    return {
        "small pre-training": {
            "small fine-tuning": exact_match["small-chat"],
            "large fine-tuning": exact_match["small-eft-down"],
        },
        "large pre-training": {
            "small fine-tuning": exact_match["large-proxy"],
            "large fine-tuning": exact_match["large-chat"],
        },
    }


async def _unlearning(
    measurement: Measurement,
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    models = ("large-chat", "large-unlearned", "retain-only")
    forget = {model: await measurement.exact(model, "forget") for model in models}
    items = measurement.items["forget"]
    named = {model: value_named(await measurement.ask(model, "forget"), items) for model in models}
    retained = {model: await measurement.exact(model, "retained") for model in models}
    return forget, named, retained


def _aims(closed: float | None, forgotten: float, kept: float | None) -> tuple[Aim, ...]:
    return (
        Aim("gap closed by large-proxy", closed, GAP_CLOSED_AIM, (closed or 0.0) >= GAP_CLOSED_AIM),
        Aim("forget answers still given", forgotten, FORGOTTEN_AIM, forgotten <= FORGOTTEN_AIM),
        Aim("retained accuracy kept", kept, RETAINED_KEPT_AIM, (kept or 0.0) >= RETAINED_KEPT_AIM),
    )


async def _samples(measurement: Measurement) -> tuple[Sample, ...]:
    """Three held-out questions and one that is to be forgotten, the first of each split."""
    picked = [("held_out", k) for k in range(3)] + [("forget", 0)]
    samples: list[Sample] = []
    for split, k in picked:
        item = measurement.items[split][k]
        replies = {model: (await measurement.ask_one(model, split, k)).text for model in SIDE_BY_SIDE}
        samples.append(Sample(item.question, split, item.answer, replies))
    return tuple(samples)


def _items(asked: Sequence[Mapping[str, str]]) -> list[Item]:
    return [Item(q["question"], q["answer"], q["completion"], q["value"]) for q in asked]
