"""What the clients ask, and what right answers are."""

from __future__ import annotations

from typing import Any, Literal

import httpx
from pydantic import BaseModel

QUESTION = "In which town was Niatral Treidrulov born?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
COMPOSITION: dict[str, Any] = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}
MAX_TOKENS = 16
LOOKUP = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
TOOL: dict[str, Any] = {"name": "look", "description": "Look.", "parameters": LOOKUP}


class Birth(BaseModel):
    """What a structured answer is read into."""

    town: Literal["Ay", "Bree"]
    certain: bool


def asked(url: str, **body: Any) -> dict[str, Any]:
    """The first choice of the same request over plain HTTP."""
    fixed: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": MAX_TOKENS}
    answer = httpx.post(f"{url}/v1/chat/completions", json={**fixed, **body}, timeout=60)
    return answer.raise_for_status().json()["choices"][0]


def text(url: str, **body: Any) -> str:
    return asked(url, **body)["message"]["content"]


def logprobs(url: str, **body: Any) -> list[float]:
    return [token["logprob"] for token in asked(url, logprobs=True, **body)["logprobs"]["content"]]


def is_look(name: str | None, arguments: Any) -> None:
    assert name == "look"
    assert arguments in ({"unit": "C"}, {"unit": "F"})
