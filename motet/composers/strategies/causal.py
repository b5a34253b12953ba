"""Causal unlearning: answer as if the question were about somebody else, averaged over several."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from motet.composers.plan import Plan, Prompt
from motet.composers.roles import MAX_PARTS, Voice, listed
from motet.composers.rules import MixtureRule, Rule
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request

Name = Annotated[str, Field(min_length=1, max_length=256)]
Names = Annotated[
    list[Name],
    Field(min_length=1, max_length=MAX_PARTS),
    BeforeValidator(listed, json_schema_input_type=Name | list[Name]),
]


class Causal(RuleStrategy, frozen=True):
    """`z = log (1/K) Σ_k p_base(· | prompt about others_k)`

    Revisiting Who's Harry Potter: Towards Targeted Unlearning from a Causal Intervention Perspective (Liu et al. 2024,
    arXiv:2407.16997). One model reads the request's prompt K times, each time with other names in the place of those
    that shall be forgotten. `names` are one or several forms of a name ("Harry Potter", "Harry"), whole words only;
    every entry of `others` has as many, in the same order. What the model knows by the name is gone, what it says of
    anybody stays. A prompt without the name is answered as always. The base itself is read beside the K for traces and
    for usage, so that a token costs K + 1 rows of one forward.
    """

    strategy: Literal["causal"] = "causal"
    names: Annotated[Names, Field(examples=["Ada Lovelace"])]
    """How the one is called whom the answer shall not know: a text, or several forms of the name."""
    others: Annotated[
        list[Names], Field(min_length=1, max_length=MAX_PARTS, examples=[["Grace Hopper", "Alan Turing"]])
    ]
    """Who stands in, one after the other: each as many texts as `names` has."""

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        unlike = next((other for other in self.others if len(other) != len(self.names)), None)
        if unlike is not None:
            raise ValueError(f"names has {len(self.names)} forms, {unlike} of others {len(unlike)}: give as many")
        return self

    def rule(self) -> Rule:
        return MixtureRule()

    def parts(self, request: Request) -> tuple[Part, ...]:
        swapped = [tuple(zip(self.names, other, strict=True)) for other in self.others]
        voices = [replace(request.base, prompt=_about(request.base, swaps)) for swaps in swapped]
        weight = 1 / len(voices)
        return ("base", request.base, 0.0), *((f"other_{i}", voice, weight) for i, voice in enumerate(voices, 1))

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        if self.schedule is None:
            return plan
        base, *others = plan.streams  # what a scale leaves of the average is the base's
        return replace(plan, streams=(replace(base, scheduled=((self.schedule.as_schedule(), -1.0),)), *others))


def _about(base: Voice, swaps: tuple[tuple[str, str], ...]) -> Prompt:
    return replace(base.prompt or Prompt(), swaps=swaps)
