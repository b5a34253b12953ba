"""What is sent: prompts, and the models and compositions that answer them, by weight."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, cast

Json = Mapping[str, Any]
SYLLABLES = ("ba", "dol", "ka", "lo", "mer", "ren", "sun", "ti")


@dataclass(frozen=True)
class Target:
    """What answers: fields of the request's body, and how often, in relation to the others.

    Raises:
        ValueError: the weight is not a positive number.
    """

    label: str
    weight: float
    body: Json

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.label}: weight must be above 0, got {self.weight}")


@dataclass(frozen=True)
class Job:
    """One request."""

    label: str
    endpoint: str
    body: Json


def read_mix(file: Path) -> list[Target]:
    """A JSON list of request bodies; `weight` (1) and `label` (model and strategy) are ours.

    Raises:
        ValueError: it is something else; names the entry.
    """
    entries: Any = json.loads(file.read_text("utf-8"))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file}: must be a list of request bodies")
    return [_entry(entry, f"{file}: entry {i + 1}") for i, entry in enumerate(cast("list[object]", entries))]


def _entry(entry: object, place: str) -> Target:
    if not isinstance(entry, dict) or "model" not in entry:
        raise ValueError(f"{place}: must be an object with `model`")
    fields = cast("dict[str, Any]", entry)
    body = {name: value for name, value in fields.items() if name not in ("weight", "label")}
    weight = fields.get("weight", 1.0)
    if not isinstance(weight, int | float):
        raise ValueError(f"{place}: weight must be a number, got {weight!r}")
    return Target(str(fields.get("label", _label(body))), float(weight), body)


def _label(body: Json) -> str:
    """The model, and the strategy that it is composed by."""
    composition: object = body.get("composition")
    if not isinstance(composition, dict):
        return str(body["model"])
    return f"{body['model']} {cast('Json', composition).get('strategy', 'compose')}"


def read_prompts(file: Path) -> list[Json]:
    """JSON lines that have `messages` or `prompt`; other fields of theirs are sent, too.

    Raises:
        ValueError: a line is something else; names it.
    """
    numbered = enumerate(file.read_text("utf-8").split("\n"), 1)  # JSON may have Unicode's other separators as they are
    lines = [(i, line) for i, line in numbered if line.strip()]
    prompts = [(i, json.loads(line)) for i, line in lines]
    for i, prompt in prompts:
        if not isinstance(prompt, dict) or ("messages" in prompt) == ("prompt" in prompt):
            raise ValueError(f"{file}:{i}: must be an object with `messages` or `prompt`")
    if not prompts:
        raise ValueError(f"{file}: no prompts")
    return [prompt for _, prompt in prompts]


def synthetic_prompts(count: int, words: tuple[int, int], seed: int) -> list[Json]:
    """Messages of so many made-up words, at least and at most; no two begin alike, so that no cache of prompts answers
    for the models."""
    random = Random(f"prompts {seed}")
    texts = [" ".join(_word(random) for _ in range(random.randint(*words))) for _ in range(count)]
    return [{"messages": [{"role": "user", "content": f"{i}: {text}"}]} for i, text in enumerate(texts)]


def _word(random: Random) -> str:
    return "".join(random.choices(SYLLABLES, k=2))


def jobs(
    count: int, targets: Sequence[Target], prompts: Sequence[Json], max_tokens: tuple[int, int], fixed: Json, seed: int
) -> list[Job]:
    """So many requests, the prompts in their order; a target's own fields, then a prompt's, win over `fixed`."""
    random = Random(f"jobs {seed}")
    drawn = random.choices(targets, [target.weight for target in targets], k=count)
    asked = zip(drawn, islice(cycle(prompts), count), strict=True)
    return [_job(target, prompt, {"max_tokens": random.randint(*max_tokens), **fixed}) for target, prompt in asked]


def _job(target: Target, prompt: Json, fixed: Json) -> Job:
    endpoint = "chat/completions" if "messages" in prompt else "completions"
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return Job(target.label, endpoint, {**fixed, **prompt, **target.body, **streamed})
