"""`through` of a recipe: the composition that the loss is taken on, checked before any model is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from motet.composers.errors import CompositionError
from motet.composers.plan import ROUTING, HeadKind, Plan, Stream
from motet.composers.rules import BudgetRule, DiscriminatorRule, DivergenceRule, DynamicRule, LinearRule, MixtureRule
from motet.composers.spec import build_plan, parse_composition
from motet.training.batch import PromptForm
from motet.training.policies.composed import prompt_form
from motet.training.recipe import TRAINED

TokenId = Callable[[str], int | None]
# what trains the heads that a composition asks for
OBJECTIVES: Mapping[tuple[HeadKind, ...], str] = {ROUTING: "gate or router", ("similarity",): "similarity_head"}


def through_plan(through: Mapping[str, Any], members: Collection[str], token_id: TokenId) -> Plan:
    """The plan of a composition over `members` and the trained model (`trained`).

    Args:
        token_id: the id of a text that is exactly one token, else None.

    Raises:
        CompositionError: all that is wrong, paths beginning with `through`.
    """
    plan = member_plan(through, [*members, TRAINED], token_id, "through")
    if not any(stream.model == TRAINED and _counts(stream, plan) for stream in plan.streams):
        raise CompositionError(
            f"through: no stream is the trained model: name it {TRAINED!r}, with a weight that is not 0", "through"
        )
    if isinstance(plan.rule, DynamicRule | BudgetRule):
        raise CompositionError(
            f"through.strategy: {plan.strategy!r} solves for its weight at every token, and no gradient goes through "
            "that; train through a strategy with fixed weights",
            "through.strategy",
        )
    return plan


def _counts(stream: Stream, plan: Plan) -> bool:
    """Whether the score depends on the stream by more than its masks."""
    if isinstance(plan.rule, DivergenceRule):
        return stream is plan.streams[0]
    return stream.weight != 0 or not isinstance(plan.rule, LinearRule | MixtureRule)


def member_plan(composition: Mapping[str, Any], models: Collection[str], token_id: TokenId, path: str) -> Plan:
    """The plan of a composition whose streams read the records' own prompts.

    Raises:
        CompositionError: unknown models, no base, prompts of the streams' own, rules that judge more than a run scores;
            paths begin with `path`.
    """
    try:
        plan = build_plan(parse_composition(dict(composition)), None, known=models, token_id=token_id)
    except CompositionError as error:
        raise CompositionError(re.sub(r"(^|; )composition\b", rf"\1{path}", error.message), path) from None
    if isinstance(plan.rule, DiscriminatorRule):
        raise CompositionError(
            f"{path}.strategy: {plan.strategy!r} judges the prompt with the answer, of which a run scores the "
            "answer alone; train the classes with the gedi objective",
            f"{path}.strategy",
        )
    if plan.heads:
        objective = OBJECTIVES.get(plan.heads, "temperature_head")
        raise CompositionError(
            f"{path}.strategy: {plan.strategy!r} asks a {' or '.join(plan.heads)} of its base, which members of a run "
            f"do not have; train it with the {objective} objective",
            f"{path}.strategy",
        )
    if plan.exits:
        raise CompositionError(
            f"{path}.strategy: {plan.strategy!r} reads early layers of its base, which no run does",
            f"{path}.strategy",
        )
    if plan.schedules:
        raise CompositionError(
            f"{path}.schedule: a run scores answers at the full strength; leave the schedule out", f"{path}.schedule"
        )
    for stream in plan.streams:
        try:
            prompt_form(stream.prompt)
        except ValueError as error:
            raise CompositionError(f"{path}: stream {stream.role!r} ({stream.model}): {error}", path) from None
    return plan


def views_of(plan: Plan) -> frozenset[PromptForm]:
    """The prompt forms that a batch must have beside its own."""
    return frozenset(form for stream in plan.streams if (form := prompt_form(stream.prompt)) is not None)
