"""Product of experts: the geometric ensemble."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from motet.composers.errors import CompositionError
from motet.composers.roles import MAX_PARTS, RoleObject, Voice, Weight, named
from motet.composers.shift import Shift, Term
from motet.composers.strategies.strategy import Request, Strategy


class MemberObject(RoleObject, frozen=True):
    """A role with its weight in the product."""

    weight: Weight = 1.0
    """Factor of this model's log-probs."""


Member = Annotated[MemberObject, BeforeValidator(named, json_schema_input_type=MemberObject | str)]


class Product(Strategy, frozen=True):
    """`z = Σ_k w_k L_k`

    Training Products of Experts by Minimizing Contrastive Divergence (Hinton 2002); with weights 1 / K the geometric
    mean of K models. `members` are all of the ensemble, the base among them: the first member whose model is the
    request's, or the first of all if the request leaves it open. A base with weight 0 only serves as the reference
    of traces.
    """

    strategy: Literal["product"] = "product"
    members: Annotated[list[Member], Field(min_length=1, max_length=MAX_PARTS)]
    """All models of the product, the base among them."""

    def own_base(self, model: str | None) -> Voice | None:
        if self.base is not None:
            return super().own_base(model)
        voices = [member.voice for member in self.members if model in (None, member.model)]
        return voices[0] if voices else None

    def shift(self, request: Request) -> Shift:
        if all(member.voice != request.base for member in self.members):
            path = f"{request.path}.members"
            names = ", ".join(dict.fromkeys(member.model for member in self.members))
            raise CompositionError(
                f"{path}: the base {request.base.model!r} (with its prompt) is not a member; members: {names}. "
                "Compose on one of them, or list the base with its weight",
                path,
            )
        # the base's own 1 is taken back: its weight is the one that it has as a member
        terms = (Term(f"member_{i}", m.voice, m.weight) for i, m in enumerate(self.members, 1))
        return Shift((Term("base", request.base, -1.0), *terms))
