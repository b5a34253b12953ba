"""A fixed question whose answer must stay the same to the last bit, whatever was asked in between."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import httpx

MODEL_FIELDS = ("large", "small-chat", "small")  # of the demo family; others take their first models
TIMEOUT_S = 60.0


def probe_body(models: tuple[str, ...]) -> dict[str, Any]:
    """Four choices drawn with a seed under a composition, with all that is reported of them."""
    base, expert, antiexpert = (models * 3)[:3]
    return {
        "model": base,
        "prompt": "Where was Lodry Vell born?",
        "composition": {
            "strategy": "proxy_tuning",
            "base": base,
            "expert": expert,
            "antiexpert": {"model": antiexpert, "prompt": ""},
        },
        "seed": 7,
        "n": 4,
        "temperature": 0.8,
        "max_tokens": 24,
        "logprobs": 5,
        "trace": {"top": 2},
    }


@cache
def members(url: str) -> tuple[str, ...]:
    """Three models for the probe: those of the demo family where they are served."""
    served = [card["id"] for card in httpx.get(f"{url}/v1/models", timeout=TIMEOUT_S).json()["data"]]
    known = tuple(name for name in MODEL_FIELDS if name in served)
    return known if len(known) == len(MODEL_FIELDS) else tuple(served[:3])


class Probe:
    """Asks it again and again. What depends on the moment (ids, times, cached tokens) is left out."""

    def __init__(self) -> None:
        self.asked = 0
        self.different = 0
        self._first: str | None = None
        self._body: dict[str, Any] = {}

    def ask(self, url: str) -> bool:
        """Whether the answer is the first one's, bit by bit."""
        self._body = self._body or probe_body(members(url))
        answer = httpx.post(f"{url}/v1/completions", json=self._body, timeout=TIMEOUT_S)
        answer.raise_for_status()
        choices = json.dumps(answer.json()["choices"])
        self._first = self._first or choices
        self.asked += 1
        self.different += choices != self._first
        return choices == self._first

    def summary(self) -> dict[str, int]:
        return {"asked": self.asked, "different": self.different}
