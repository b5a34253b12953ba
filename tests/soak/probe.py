"""A fixed question whose answer must stay the same to the last bit, whatever was asked in between."""

from __future__ import annotations

import uuid
from functools import cache
from typing import Any

import httpx

MODEL_FIELDS = ("large", "small-chat", "small")  # of the demo family; others take their first models
TIMEOUT_S = 60.0
PROMPT = "~ What"  # read in one piece at any load: how long prompts are cut goes by measured times
SEEDS = (7, 8, 9, 10)


def probe_body(models: tuple[str, ...]) -> dict[str, Any]:
    """An answer drawn with a seed under a composition, with all that is reported of it. What goes by measured times or
    by what was asked before (guesses ahead, prefixes found) decides how last digits are rounded, and is left out."""
    base, expert, antiexpert = (models * 3)[:3]
    return {
        "model": base,
        "prompt": PROMPT,
        "composition": {
            "strategy": "proxy_tuning",
            "base": base,
            "expert": expert,
            "antiexpert": {"model": antiexpert, "prompt": ""},
        },
        "temperature": 0.8,
        "max_tokens": 24,
        "logprobs": 5,
        "trace": {"top": 2},
        "speculation": "off",
        "cache_salt": uuid.uuid4().hex,
    }


@cache
def members(url: str) -> tuple[str, ...]:
    """Three models for the probe: those of the demo family where they are served."""
    served = [card["id"] for card in httpx.get(f"{url}/v1/models", timeout=TIMEOUT_S).json()["data"]]
    known = tuple(name for name in MODEL_FIELDS if name in served)
    return known if len(known) == len(MODEL_FIELDS) else tuple(served[:3])


class Probe:
    """Asks it again and again, with every seed. What depends on the moment (ids, times) is left out."""

    def __init__(self) -> None:
        self.asked = 0
        self.different = 0
        self.other_texts = 0
        self.largest_difference = 0.0  # of two log-probabilities, in nats
        self._first: Any = None

    def ask(self, url: str, *, fresh: bool = False) -> bool:
        """Whether the answer is the first one, bit by bit; `fresh` says of a server that it has answered nothing."""
        if fresh or self._first is None:  # what a server answers first, it measures itself by
            self._all(url)
        choices = self._all(url)
        self._first = self._first or choices
        self.asked += 1
        if choices == self._first:
            return True
        self.different += 1
        texts = [[choice["text"] for choice in one] for one in (self._first, choices)]
        if texts[0] != texts[1]:
            self.other_texts += 1
        else:
            pairs = zip(_numbers(self._first), _numbers(choices), strict=True)
            self.largest_difference = max(self.largest_difference, *(abs(one - other) for one, other in pairs))
        return False

    def _all(self, url: str) -> list[Any]:
        return [choice for seed in SEEDS for choice in self._choices(url, seed)]

    def _choices(self, url: str, seed: int) -> Any:
        body = {**probe_body(members(url)), "seed": seed}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()["choices"]

    def summary(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "different": self.different,
            "other_texts": self.other_texts,
            "largest_difference": self.largest_difference,
        }


def _numbers(choices: Any) -> list[float]:
    """The log-probabilities of the tokens that were drawn."""
    return [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
