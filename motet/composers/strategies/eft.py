"""Emulated fine-tuning: the knowledge of one scale of pre-training, the behaviour of another scale of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from motet.composers.roles import MAX_PARTS, Role, Share, Spec, Weight
from motet.composers.shift import Shift, Term, nucleus
from motet.composers.strategies.strategy import Request, Strategy


class Trait(Spec, frozen=True):
    """A behaviour: what `tuned` learned over `reference`, times `beta`."""

    tuned: Role
    """The fine-tuned model."""
    reference: Role
    """The model that it was tuned from."""
    beta: Weight = 1.0
    """Strength; above 1 amplifies."""
    top_p: Share | None = None
    """The shift counts only inside the tuned model's top-p set; null: everywhere."""

    def terms(self) -> tuple[Term, Term]:
        inside = nucleus(self.tuned.voice, self.top_p)
        return (
            Term("tuned", self.tuned.voice, self.beta, inside=inside),
            Term("reference", self.reference.voice, -self.beta, inside=inside),
        )


class Eft(Strategy, frozen=True):
    """`z = L_base + Σ_i β_i (L_tuned_i − L_reference_i) · [v ∈ top-p of tuned_i]`

    An Emulator for Fine-Tuning Large Language Models using Small Language Models (Mitchell et al. 2023,
    arXiv:2310.12962). A base larger than the traits is up-scaling, a smaller one down-scaling, β > 1 amplifies.
    One trait is written flat (`tuned`, `reference`, `beta` = 1, `top_p`), several as `traits`.
    """

    partners = ("tuned", "reference")
    strength = "beta"
    strategy: Literal["eft"] = "eft"
    tuned: Role | None = None
    """The fine-tuned model. Excludes `traits`."""
    reference: Role | None = None
    """The model that it was tuned from."""
    beta: Weight | None = None
    """Strength, 1 unless given; above 1 amplifies."""
    top_p: Share | None = None
    """The shift counts only inside the tuned model's top-p set; null: everywhere."""
    traits: Annotated[list[Trait], Field(min_length=1, max_length=MAX_PARTS)] | None = None
    """Several behaviours, each with a strength of its own."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        flat = (self.tuned, self.reference, self.beta, self.top_p)
        if self.traits is not None and any(value is not None for value in flat):
            raise ValueError("give either traits, or tuned, reference, beta and top_p of one trait, not both")
        if self.traits is None and (self.tuned is None or self.reference is None):
            raise ValueError("needs tuned and reference, or traits")
        return self

    def all_traits(self) -> list[Trait]:
        if self.traits is not None:
            return self.traits
        assert self.tuned is not None
        assert self.reference is not None
        beta = 1.0 if self.beta is None else self.beta
        return [Trait(tuned=self.tuned, reference=self.reference, beta=beta, top_p=self.top_p)]

    def shift(self, request: Request) -> Shift:
        return Shift(tuple(term for trait in self.all_traits() for term in trait.terms()))
