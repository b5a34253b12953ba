"""Ensembles in probability space: members with their shares, the base among them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from motet.composers.errors import CompositionError
from motet.composers.roles import MAX_PARTS, MAX_WEIGHT, RoleObject, Voice, named
from motet.composers.strategies.rule_strategy import Part, RuleStrategy
from motet.composers.strategies.strategy import Request


class MixedObject(RoleObject, frozen=True):
    """A role with its share of the mixture; shares need not sum to 1."""

    weight: Annotated[float, Field(gt=0, le=MAX_WEIGHT, allow_inf_nan=False)] = 1.0
    """Share of this model's probabilities; shares need not sum to 1."""


MixedMember = Annotated[MixedObject, BeforeValidator(named, json_schema_input_type=MixedObject | str)]


class Ensemble(RuleStrategy, frozen=True):
    """Members; the base is the first whose model is the request's, or the first if the request leaves it open."""

    members: Annotated[list[MixedMember], Field(min_length=1, max_length=MAX_PARTS)]
    """All models of the mixture, the base among them."""

    def own_base(self, model: str | None) -> Voice | None:
        if self.base is not None:
            return super().own_base(model)
        voices = [member.voice for member in self.members if model in (None, member.model)]
        return voices[0] if voices else None

    def parts(self, request: Request) -> tuple[Part, ...]:
        voices = [member.voice for member in self.members]
        if request.base not in voices:
            path = f"{request.path}.members"
            names = ", ".join(dict.fromkeys(member.model for member in self.members))
            raise CompositionError(f"{path}: the base {request.base.model!r} is not a member; members: {names}", path)
        first = voices.index(request.base)
        order = [first, *(i for i in range(len(voices)) if i != first)]
        roles = ["base", *(f"member_{i + 1}" for i in order[1:])]
        return tuple((role, voices[i], self.members[i].weight) for role, i in zip(roles, order, strict=True))
