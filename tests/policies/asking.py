"""A client of a policy: it asks, reads what comes, and keeps all of it for whoever looks for names in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.policies.family import TOWNS, Fact

Body = dict[str, Any]


def of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@dataclass
class Asker:
    """`seen`: the texts of everything that was answered, headers included; `refused`: how often 403 or 404."""

    client: httpx.AsyncClient
    key: str = "client-key"
    model: str = "guide"
    seen: list[str] = field(default_factory=list[str])
    refused: int = 0

    async def send(self, method: str, path: str, **request: Any) -> Any:
        """The answer's JSON (a stream's as the list of its chunks), or its text; None where it is refused."""
        response = await self.client.request(method, path, headers=of(self.key), **request)
        self.seen.append(f"{response.headers} {response.text}")
        self.refused += response.status_code in (403, 404)
        if response.status_code != 200:
            return None
        kind = response.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]
        return response.json() if kind.startswith("application/json") else response.text

    async def chat(self, fact: Fact, before: list[Body] | None = None, **fields: Any) -> Body | None:
        messages = [*(before or []), {"role": "user", "content": fact.question}]
        asked = {"model": self.model, "messages": messages, "max_tokens": 1} | fields
        return await self.send("POST", "/v1/chat/completions", json=asked)

    async def says(self, fact: Fact, before: list[Body] | None = None, **fields: Any) -> str:
        """The first town of the answer; nothing where there is none."""
        answer = await self.chat(fact, before, **fields)
        return "" if answer is None else town_in(answer["choices"][0]["message"]["content"])

    async def writes(self, prompt: str, **fields: Any) -> str:
        """The first town that continues a text."""
        asked = {"model": self.model, "prompt": prompt, "max_tokens": 1} | fields
        answer = await self.send("POST", "/v1/completions", json=asked)
        return "" if answer is None else town_in(answer["choices"][0]["text"])


def town_in(text: str) -> str:
    return next((letter for letter in text if letter in TOWNS), "")
