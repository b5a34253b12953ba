"""What is said to a server and what it answers, as the terminal needs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from openai import AsyncOpenAI

from motet.settings import offer

Composition = dict[str, Any]


class ChatError(Exception):
    """What was asked for cannot be done; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it comes. `shift`: how much likelier the composition made its tokens than the base has
    them, in nats, of the token that was moved most; None without a trace."""

    text: str
    shift: float | None = None


@dataclass(slots=True)
class Conversation:
    """What has been said, and how the next answer is asked for.

    Attributes:
        cards: model id → its entry in /v1/models.
        strengths: strategy → the parameter that scales its shift, where one does.
        model: who answers.
        composition: instead of the one that `model` names.
        sampling: fields of the request, as `temperature`.
    """

    sdk: AsyncOpenAI
    cards: Mapping[str, Mapping[str, Any]]
    strengths: Mapping[str, str]
    model: str
    composition: Composition | None = None
    traced: bool = False
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    @classmethod
    async def begin(cls, sdk: AsyncOpenAI, model: str | None = None) -> Conversation:
        """With the server's first composition, or its first model, unless one is named.

        Raises:
            ChatError: no such model.
            openai.OpenAIError: the server cannot be asked.
        """
        cards = {card.id: card.model_dump() async for card in sdk.models.list()}
        told = cast("dict[str, Any]", await sdk.get("/strategies", cast_to=object))
        strengths = {entry["id"]: entry["strength"]["parameter"] for entry in told["data"] if entry["strength"]}
        composed = [name for name, card in cards.items() if card.get("composition")]
        conversation = cls(sdk, cards, strengths, [*composed, *cards][0])
        if model is not None:
            conversation.choose(model)
        return conversation

    def choose(self, model: str) -> None:
        """The next answers are this one's. Raises ChatError."""
        if model not in self.cards:
            raise ChatError(f"the server has no model {model!r}.{offer(model, self.cards)}")
        self.model, self.composition = model, None

    def strengthen(self, value: float) -> str:
        """The composition at another strength; returns the name of the field. Raises ChatError."""
        composition = self.composition or self.cards[self.model].get("composition")
        if composition is None:
            raise ChatError(f"{self.model} is one model: there is no strength. /models shows the compositions.")
        parameter = self.strengths.get(composition.get("strategy", ""))
        if parameter is None:
            raise ChatError(f"no one number is the strength of {composition.get('strategy', 'a sum of strategies')}.")
        self.composition = {**composition, parameter: value}
        return parameter

    def instruct(self, text: str) -> None:
        """The system message; none where the text is empty."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *rest] if text else rest

    def forget(self) -> None:
        """All that was said, but for the system message."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    async def ask(self, text: str) -> AsyncIterator[Piece]:
        """The answer, piece by piece; what came of it counts as said, also where it is left early.

        Raises:
            openai.OpenAIError: the server refuses, or is gone; nothing counts as said.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        stream = await self.sdk.chat.completions.create(
            model=self._asked_model,
            messages=cast(Any, asked),
            stream=True,
            extra_body=self._composed() | ({"trace": True} if self.traced else {}),
            **self.sampling,
        )
        said: list[str] = []
        try:
            async for chunk in stream:
                for choice in chunk.choices:
                    piece = Piece(choice.delta.content or "", _shift(choice.model_extra))
                    said.append(piece.text)
                    if piece.text:
                        yield piece
        finally:
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
            await stream.close()

    async def compare(self, text: str, models: Sequence[str]) -> list[tuple[str, str]]:
        """(model, answer) of each to the same question, which does not count as said; who answers now, answers at the
        strength that was chosen.

        Raises:
            ChatError: no such model.
            openai.OpenAIError: the server refuses.
        """
        for model in models:
            if model not in self.cards:
                raise ChatError(f"the server has no model {model!r}.{offer(model, self.cards)}")
        asked = [*self.messages, {"role": "user", "content": text}]
        body = {"messages": asked, "candidates": [self._candidate(model) for model in models], **self.sampling}
        found = cast("dict[str, Any]", await self.sdk.post("/compare", cast_to=object, body=body))
        return [(one["label"], one["choices"][0]["message"]["content"] or "") for one in found["candidates"]]

    def _candidate(self, model: str) -> str | dict[str, Any]:
        if model != self.model or self.composition is None:
            return model
        strength = self.strengths[self.composition["strategy"]]
        label = f"{model}, {strength} {self.composition[strength]:g}"
        return {"label": label, "model": self._asked_model, **self._composed()}

    @property
    def _asked_model(self) -> str:
        """The base of a composition that is sent along: a named one takes no other."""
        parent = self.cards[self.model].get("parent")
        return self.model if self.composition is None or parent is None else str(parent)

    def _composed(self) -> dict[str, Any]:
        return {} if self.composition is None else {"composition": self.composition}


def _shift(extra: Mapping[str, Any] | None) -> float | None:
    ours = cast("dict[str, Any]", (extra or {}).get("motet") or {})
    trace = cast("list[dict[str, Any]]", ours.get("trace") or [])
    moved = [float(token["logprob"]) - float(token["members"]["base"]) for token in trace]
    return max(moved, key=abs, default=None)
