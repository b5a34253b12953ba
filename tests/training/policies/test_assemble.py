"""The policies of whole recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from motet.composers.plan import Plan, Stream
from motet.models.heads import GateHead
from motet.training.llama import make_llama
from motet.training.objectives.unlearning import NegativePreference
from motet.training.policies.assemble import assemble, hidden_size, teacher_policy
from motet.training.policies.composed import ComposedPolicy
from motet.training.policies.model import ModelPolicy
from motet.training.recipe import Recipe
from tests.training.batches import Document, make_batch

VOCAB = 20
BATCH = make_batch([[Document([1, 2, 3, 4], 1)], [Document([5, 6], 1)]])
PLAN = Plan((Stream("base", "large"), Stream("expert", "trained"), Stream("antiexpert", "small", -1.0)))


def model(seed: int) -> Any:
    return make_llama(VOCAB, hidden=16, layers=1, heads=2, intermediate=24, max_length=32, seed=seed)


def recipe(objective: dict[str, Any]) -> Recipe:
    sections = {"output": Path("out"), "model": {"path": "base"}, "data": {"train": {"files": ["a"]}}}
    return Recipe.model_validate({**sections, "objective": objective, "schedule": {"steps": 1}})


def moved(trained: nn.Module) -> None:
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter += 0.1


def test_a_plain_objective_gets_the_model_alone() -> None:
    policies = assemble(recipe({"type": "sft"}), model(0), {}, dtype=torch.float32)
    assert isinstance(policies.trained, ModelPolicy)
    assert policies.reference is None
    assert policies.head is None


def test_reference_through_a_composition_stays_while_the_trained_stream_moves() -> None:
    members = {"large": model(1), "small": model(2)}
    for tuned in (model(0), get_peft_model(model(0), LoraConfig(target_modules="all-linear"))):
        policies = assemble(recipe({"type": "npo"}), tuned, members, dtype=torch.float32, plan=PLAN)
        before = policies.trained(BATCH).detach()
        assert policies.reference is not None
        assert isinstance(policies.trained, ComposedPolicy)
        torch.testing.assert_close(policies.reference(BATCH), before)
        moved(tuned)
        assert not torch.allclose(policies.trained(BATCH), before)
        torch.testing.assert_close(policies.reference(BATCH), before)
        assert policies.trained(BATCH).requires_grad
        assert not policies.reference(BATCH).requires_grad


def test_a_loss_through_a_composition_reaches_the_trained_model_alone() -> None:
    members, tuned = {"large": model(1), "small": model(2)}, model(0)
    policies = assemble(recipe({"type": "npo"}), tuned, members, dtype=torch.float32, plan=PLAN)
    NegativePreference().loss(policies, {"forget": BATCH}).total.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in tuned.parameters())
    assert all(p.grad is None and not p.requires_grad for member in members.values() for p in member.parameters())


def test_heads_and_members() -> None:
    tuned = model(0)
    policies = assemble(recipe({"type": "gate", "assistant": "small"}), tuned, {"small": model(2)}, dtype=torch.float32)
    assert isinstance(policies.head, GateHead)
    assert hidden_size(tuned) == 16 == hidden_size(get_peft_model(tuned, LoraConfig(target_modules="all-linear")))
    torch.testing.assert_close(policies.members["small"](BATCH), ModelPolicy(model(2), torch.float32)(BATCH).detach())


def test_teachers() -> None:
    members = {name: ModelPolicy(model(seed), torch.float32) for seed, name in enumerate(("large", "small", "tuned"))}
    alone = teacher_policy(recipe({"type": "distill", "teacher": "small"}), members, None)
    assert alone is members["small"]
    plan = Plan((Stream("base", "large"), Stream("expert", "tuned"), Stream("antiexpert", "small", -1.0)))
    composed = teacher_policy(recipe({"type": "distill", "teacher": {}}), members, plan)
    parts = {name: policy(BATCH).log_softmax(-1) for name, policy in members.items()}
    expected = (parts["large"] + parts["tuned"] - parts["small"]).log_softmax(-1)
    torch.testing.assert_close(composed(BATCH), expected.detach())
