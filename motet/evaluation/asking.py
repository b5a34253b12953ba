"""Asks the API through the openai SDK: replies, log-probabilities, traces; many requests at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from openai import AsyncOpenAI, BaseModel
from openai.types import Completion
from openai.types.chat import ChatCompletion

from motet.evaluation.subject import Subject
from motet.evaluation.unfinished import Answers

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Messages = Sequence[tuple[str, str]]  # (role, content)


@dataclass(frozen=True, slots=True)
class SubjectReply:
    """Generated text, whether it ended by itself (not cut at the token limit), and what was asked for beside it.

    `confidence`: each token's probability under the composed distribution; `shifts`: for each token whether it was
    "unshifted", "marginal" or "shifted" against the base (only with `trace`).
    """

    text: str
    ended: bool
    confidence: tuple[float, ...] = ()
    shifts: tuple[str, ...] = ()


class Entry(BaseModel):
    """One continuation in the answer of /v1/score."""

    token_logprobs: list[float]


class ContinuationScores(BaseModel):
    """The answer of /v1/score."""

    data: list[Entry]


@dataclass
class Api:
    """At most `concurrency` requests under way. `done` is told of each that is over; `answers` are kept for a run that
    goes on where this one ends, and what an earlier one kept is not asked again."""

    sdk: AsyncOpenAI
    concurrency: int = 32
    done: Callable[[], None] = lambda: None
    answers: Answers | None = None
    _places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.concurrency)

    async def together(self, calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """All results in order; the first failure ends the others."""
        tasks = [asyncio.create_task(self._one(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for call in calls:
                call.close()  # one that never began would be missed

    def skip(self, count: int) -> None:
        """So many of the announced requests are not needed."""
        for _ in range(count):
            self.done()

    async def _one(self, call: Coroutine[Any, Any, T]) -> T:
        async with self._places:
            result = await call
        self.done()
        return result

    async def chat(
        self,
        subject: Subject,
        messages: Messages,
        *,
        max_tokens: int,
        trace: bool = False,
        ignore_end: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        timed: bool = False,
    ) -> SubjectReply:
        """`POST /v1/chat/completions`, greedy unless a `temperature` is given; `timed`: whatever is known already."""
        body = {
            "messages": _as_dicts(messages),
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            "logprobs": True,
            "trace": trace,
            "ignore_eos": ignore_end,
        }
        known = not timed and (temperature == 0 or seed is not None)
        response = await self._post("/chat/completions", subject.target | body, ChatCompletion, keep=known)
        choice = response.choices[0]
        tokens = (choice.logprobs.content if choice.logprobs else None) or []
        return SubjectReply(
            (choice.message.content or "").strip(),
            choice.finish_reason == "stop",
            tuple(math.exp(token.logprob) for token in tokens),
            _shifts(choice.model_extra or {}),
        )

    async def sample(
        self,
        subject: Subject,
        messages: Messages,
        *,
        count: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None = None,
    ) -> list[str]:
        """`POST /v1/chat/completions` with `n`: drawn replies. A last message of the assistant's is the beginning of
        each, and no part of it."""
        prefilled = messages[-1][0] == "assistant"
        body = {
            "messages": _as_dicts(messages),
            "n": count,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "max_tokens": max_tokens,
            **({"continue_final_message": True, "add_generation_prompt": False} if prefilled else {}),
        }
        response = await self._post("/chat/completions", subject.target | body, ChatCompletion, keep=seed is not None)
        return [choice.message.content or "" for choice in response.choices]

    async def greedy(self, subject: Subject, messages: Messages, continuation: str) -> tuple[bool, ...]:
        """`POST /v1/score` with a trace: for each token of the continuation whether it is the most likely one after
        those before it."""
        body = {"messages": _as_dicts(messages), "continuations": [continuation], "trace": {"top": 1}}
        scores = await self._post("/score", subject.target | body, ContinuationScores)
        traced: list[dict[str, Any]] = (scores.data[0].model_extra or {})["motet"]["trace"]
        return tuple(entry["token_id"] == entry["top"]["composed"][0]["token_id"] for entry in traced)

    async def complete(self, subject: Subject, prompt: str, *, max_tokens: int) -> SubjectReply:
        """`POST /v1/completions`, greedy."""
        body = {"prompt": prompt, "temperature": 0.0, "max_tokens": max_tokens}
        choice = (await self._completion(subject, body)).choices[0]
        return SubjectReply(choice.text.strip(), choice.finish_reason == "stop")

    async def score(
        self, subject: Subject, messages: Messages, continuations: Sequence[str]
    ) -> list[tuple[float, ...]]:
        """`POST /v1/score`: log-probabilities of the tokens of each continuation, in nats."""
        body = {**subject.target, "messages": _as_dicts(messages), "continuations": list(continuations)}
        scores = await self._post("/score", body, ContinuationScores)
        return [tuple(entry.token_logprobs) for entry in scores.data]

    async def score_text(self, subject: Subject, text: str) -> tuple[float, ...]:
        """`POST /v1/completions` with `echo`: log-probabilities of a text's own tokens but the first, in nats."""
        body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
        logprobs = (await self._completion(subject, body)).choices[0].logprobs
        # The first token, which nothing predicts, has none: the SDK's type does not say so.
        found = cast("list[float | None]", (logprobs.token_logprobs if logprobs else None) or [])
        return tuple(value for value in found if value is not None)

    async def _completion(self, subject: Subject, body: dict[str, Any]) -> Completion:
        return await self._post("/completions", subject.target | body, Completion)

    async def _post(self, path: str, body: dict[str, Any], kind: type[M], *, keep: bool = True) -> M:
        """`keep`: the answer is the same whenever this is asked."""
        answers = self.answers if keep else None
        earlier = None if answers is None else answers.find([path, body])
        if earlier is not None:
            return kind.construct(**earlier)
        response = await self.sdk.post(path, body=body, cast_to=kind)
        if answers is not None:
            answers.keep([path, body], response.to_dict(mode="json"))
        return response


def _as_dicts(messages: Messages) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in messages]


def _shifts(choice: dict[str, Any]) -> tuple[str, ...]:
    """`shift` of every token in the choice's trace."""
    trace = cast("list[dict[str, str]]", choice.get("motet", {}).get("trace", []))
    return tuple(entry["shift"] for entry in trace)
