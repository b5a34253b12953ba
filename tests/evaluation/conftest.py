"""A server that says and scores what a test writes down, asked through the real SDK without a port."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from motet.evaluation.asking import Api
from motet.evaluation.bench import Bench
from motet.evaluation.subject import Subject

Say = Callable[[str, str], str]  # (model, last message or prompt) → reply
Score = Callable[[str, str, str], list[float]]  # (model, question, continuation) → token log-probs


@dataclass
class FakeApi:
    """`say` and `score` decide everything; `bodies` are the requests, as they came, by path."""

    say: Say = lambda model, question: ""
    score: Score = lambda model, question, text: [-1.0]
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])

    async def chat(self, request: Request) -> JSONResponse:
        body = await self._body(request)
        choices = [self._choice(body, index) for index in range(body.get("n") or 1)]
        return JSONResponse({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices})

    def _choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        text = self.say(_model(body), body["messages"][-1]["content"])
        content: list[dict[str, Any]] = [
            {"token": word, "logprob": -0.5, "bytes": None, "top_logprobs": []} for word in text.split()
        ]
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": {"content": content, "refusal": None},
        }
        if body.get("trace"):
            choice["motet"] = {
                "trace": [{"shift": "shifted" if word == "SHIFT" else "unshifted"} for word in text.split()]
            }
        return choice

    async def complete(self, request: Request) -> JSONResponse:
        body = await self._body(request)
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "stop"}
        if body.get("echo"):
            logprobs = [None, *self.score(_model(body), "", body["prompt"])]
            choice["logprobs"] = {"tokens": ["?"] * len(logprobs), "token_logprobs": logprobs}
        else:
            choice["text"] = self.say(_model(body), body["prompt"])
        return JSONResponse({"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})

    async def scores(self, request: Request) -> JSONResponse:
        body = await self._body(request)
        question = body["messages"][-1]["content"]
        rows: list[dict[str, Any]] = [
            {"token_logprobs": self.score(_model(body), question, text)} for text in body["continuations"]
        ]
        for row in rows if body.get("trace") else ():
            row["motet"] = {"trace": [_traced(logprob) for logprob in row["token_logprobs"]]}
        return JSONResponse({"object": "list", "data": rows})

    async def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        self.bodies.append((request.url.path, body))
        return body

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/score", self.scores, methods=["POST"]),
            ]
        )


def _traced(logprob: float) -> dict[str, Any]:
    """A token that is the most likely one where its probability exceeds a half."""
    return {"token_id": 1, "top": {"composed": [{"token_id": 1 if logprob > math.log(0.5) else 0}]}}


def _model(body: dict[str, Any]) -> str:
    """The model id, or the composition's strategy with its weight."""
    composition = body.get("composition")
    return body["model"] if composition is None else f"{composition['strategy']} {composition.get('weight')}"


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def sdk(fake: FakeApi) -> AsyncIterator[AsyncOpenAI]:
    client = DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(fake.app))
    async with AsyncOpenAI(base_url="http://fake/v1", api_key="none", http_client=client, max_retries=0) as sdk:
        yield sdk


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(sdk: AsyncOpenAI, tmp_path: Path) -> MakeBench:
    """A bench over the fake server with model ids as subjects, data in `tmp_path`."""

    def make(*models: str, **subjects: Subject) -> Bench:
        named = {model: Subject(model=model) for model in models} | subjects
        return Bench(Api(sdk), named, tmp_path)

    return make
