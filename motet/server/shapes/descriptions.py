"""The shapes of `GET /v1/strategies`."""

from __future__ import annotations

from typing import Any, Literal

from motet.server.shapes.answers import Shape


class CitedPaper(Shape):
    title: str | None
    """Null where the strategy's text names the authors alone."""
    authors: str
    """With the year."""
    arxiv: str | None
    """The number of the preprint."""
    url: str | None
    """Where to read it."""


class DescribedParameter(Shape):
    """A field that is no model; its type and bounds stand beside these, in JSON schema's keywords."""

    name: str
    """As a composition writes it."""
    description: str
    """What it means."""
    required: bool
    """Whether a composition must have it."""
    default: Any
    """What it is where it is left out; null: nothing."""
    nullable: bool
    """Whether null may be written."""


class DescribedRole(Shape):
    name: str
    """As a composition writes it."""
    description: str
    """What the model does there."""
    required: bool
    """Whether a composition must have it."""
    kind: Literal["model", "context"]
    """`model`: a model, and what it reads if not the prompt; `context`: another text that the base reads."""
    many: bool
    """Whether a list of them may be written."""
    parameters: list[DescribedParameter]
    """What may stand beside the model, over what it reads."""


class DescribedGroup(Shape):
    name: str
    """As a composition writes it."""
    description: str
    """What it means."""
    required: bool
    """Whether a composition must have it."""
    many: bool
    """Whether it is a list of such objects, or one."""
    strategies: list[str] | None
    """Where each of them is a composition of its own: of these strategies."""
    roles: list[DescribedRole]
    """The models of each."""
    parameters: list[DescribedParameter]
    """The other fields of each."""


class Strength(Shape):
    parameter: str
    """The parameter that scales the whole shift."""
    neutral: float
    """Its value that leaves the base as it is."""


class Cost(Shape):
    forwards: int
    """Forwards per token of the shortest composition; those of one model are rows of one batch."""
    models: int
    """How many models they are of."""
    per_entry: dict[str, int]
    """What another entry of a list adds."""


class DescribedStrategy(Shape):
    id: str
    """What `strategy` says."""
    object: Literal["strategy"]
    summary: str
    """What it is for, in one line."""
    formula: str
    """The composed score, and its mask."""
    description: str
    """What the formula leaves open."""
    papers: list[CitedPaper]
    """Where it comes from."""
    roles: list[DescribedRole]
    """The models that it composes, the base first."""
    parameters: list[DescribedParameter]
    """Its other fields."""
    groups: list[DescribedGroup]
    """Objects, and lists of them, with roles and parameters of their own."""
    stackable: bool
    """Whether it may be a part of `compose`."""
    strength: Strength | None
    """What scales its shift, where one parameter does."""
    partners: list[str] | None
    """The roles of an expert and of the model before its training, where it sets one against the other."""
    cost: Cost | None
    """What a token takes; null where no shortest composition is known."""
    unsupported: str | None
    """Why the engine does not run it; null where it does."""


class Cast(Shape):
    id: str
    """The model."""
    composes_with: list[str]
    """The models of its vocabulary, itself among them."""
    roles: dict[str, list[str]]
    """Strategy → the roles that the model may take: all of them, unless its `expert.json` names one."""
    partner: str | None
    """The loaded model, known by its weights, that its `expert.json` sets it against; null: none."""
    num_parameters: int
    """Its size."""


class StrategyList(Shape):
    object: Literal["list"]
    data: list[DescribedStrategy]
    """The strategies, in the order of the documentation."""
    models: list[Cast]
    """Which loaded models can be composed, and in which roles."""
