"""The policies that a recipe's objective reads, from the models of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from motet.composers.plan import Plan
from motet.training.policies.composed import ComposedPolicy
from motet.training.policies.frozen import Frozen, frozen_model, reference_of
from motet.training.policies.model import ModelPolicy
from motet.training.policy import ClassPrompts, Policies, Policy, Teacher
from motet.training.recipe import TRAINED, Recipe


def assemble(
    recipe: Recipe,
    model: nn.Module,
    members: Mapping[str, nn.Module],
    *,
    dtype: torch.dtype,
    plan: Plan | None = None,
    eos_token_ids: tuple[int, ...] = (),
    classes: ClassPrompts | None = None,
    teacher: Teacher | None = None,
) -> Policies:
    """Policies of a run that is about to begin.

    The reference of full tuning is a copy of `model` as it is now: call this before a checkpoint is read.

    Args:
        model: the trained one, adapters included.
        members: every member of the recipe; they are put into evaluation mode, without gradients.
        dtype: of the computation.
        plan: of `through_plan`, where the recipe has `through`.
        classes: of `class_prompts`.
        teacher: of a distillation.
    """
    trained = ModelPolicy(model, dtype)
    frozen = frozen_members(members, dtype)
    before = reference_of(trained) if recipe.objective.needs_reference else None
    return Policies(
        trained=_through(plan, trained, frozen, eos_token_ids),
        reference=None if before is None else Frozen(_through(plan, before, frozen, eos_token_ids)),
        members=frozen,
        teacher=teacher,
        head=recipe.objective.head(hidden_size(model)),
        classes=classes,
    )


def frozen_members(members: Mapping[str, nn.Module], dtype: torch.dtype) -> dict[str, Policy]:
    """Policies of the members, without gradients."""
    return {name: frozen_model(member, dtype) for name, member in members.items()}


def teacher_policy(
    recipe: Recipe, members: Mapping[str, Policy], plan: Plan | None, eos_token_ids: tuple[int, ...] = ()
) -> Policy:
    """The policy of a distillation's teacher: a member, or the composition `plan` of `teacher_plan`."""
    if plan is not None:
        return ComposedPolicy(plan, members, eos_token_ids)
    teacher: Any = getattr(recipe.objective, "teacher", None)
    return members[cast("str", teacher)]


def hidden_size(model: nn.Module) -> int:
    """The width H of the last hidden state."""
    config: Any = model.config
    return cast("int", config.get_text_config().hidden_size)


def _through(plan: Plan | None, trained: Policy, members: Mapping[str, Policy], eos: tuple[int, ...]) -> Policy:
    return trained if plan is None else ComposedPolicy(plan, {**members, TRAINED: trained}, eos)
