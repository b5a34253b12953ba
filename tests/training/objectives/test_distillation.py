"""Distillation against the full divergence, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.kernels.reference import kl_divergence
from motet.training.batch import Batch
from motet.training.objectives.distillation import Distillation, truncated_divergence
from motet.training.policies.teacher import LiveTeacher, top_tokens
from motet.training.policy import Policies, TopTokens
from tests.training.batches import Document, make_batch
from tests.training.tables import Tabled, distributions, random_logits

VOCAB = 9


def by_hand(teacher: list[float], student: list[float], k: int) -> float:
    order = sorted(range(len(teacher)), key=lambda v: -teacher[v])
    total = sum(teacher[v] * math.log(teacher[v] / student[v]) for v in order[:k])
    rest = sum(teacher[v] for v in order[k:]), sum(student[v] for v in order[k:])
    return total + (rest[0] * math.log(rest[0] / rest[1]) if k < len(teacher) else 0.0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_rest_is_one_bucket(k: int) -> None:
    teacher, student = [0.1, 0.5, 0.15, 0.25], [0.3, 0.2, 0.1, 0.4]
    top = top_tokens(distributions(teacher).detach(), k)
    actual = truncated_divergence(top, distributions(student))
    assert actual.item() == pytest.approx(by_hand(teacher, student, k), abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, VOCAB))
@settings(deadline=None, max_examples=40)
def test_truncation_only_loses(seed: int, k: int) -> None:
    """Between 0 and the full divergence; equal to it for k = V; least where the student is the teacher."""
    teacher, student = random_logits(4, VOCAB, seed).detach(), random_logits(4, VOCAB, seed + 1)
    top = top_tokens(teacher, k)
    full = kl_divergence(teacher.log_softmax(-1), student.log_softmax(-1))
    value = truncated_divergence(top, student)
    assert bool(((value >= -1e-12) & (value <= full + 1e-12)).all())
    if k == VOCAB:
        torch.testing.assert_close(value, full)
    again = teacher.clone().requires_grad_()
    divergence = truncated_divergence(top, again)
    torch.testing.assert_close(divergence, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(divergence.sum(), again)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("k", [1, 3, VOCAB, VOCAB + 5])
def test_gradients_are_exact(k: int) -> None:
    top = top_tokens(random_logits(4, VOCAB, 0).detach(), k)
    assert top.ids.shape == (4, min(k, VOCAB))

    def divergence(logits: Tensor) -> Tensor:
        return truncated_divergence(top, logits)

    assert torch.autograd.gradcheck(divergence, (random_logits(4, VOCAB, 1),))


def test_a_sure_teacher_leaves_nothing_undefined() -> None:
    sure = torch.full((1, VOCAB), -1e4, dtype=torch.float64)
    sure[0, 3] = 0.0
    top, student = top_tokens(sure, 2), random_logits(1, VOCAB, 0)
    value = truncated_divergence(top, student)
    torch.testing.assert_close(value, -student.log_softmax(-1)[:, 3])
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert bool(gradient.isfinite().all())


def test_the_objective_weighs_tokens_and_adds_their_likelihood() -> None:
    batch = make_batch([[Document([1, 0, 2, 1], 1, [1.0, 0.0, 3.0])]])
    student, teacher = random_logits(3, 3, 0), random_logits(3, 3, 1).detach()

    def live(seen: Batch) -> TopTokens:
        assert seen is batch
        return top_tokens(teacher, 3)

    loss = Distillation(teacher="large", top_k=3, nll_weight=0.25).loss(
        Policies(Tabled((batch, student)), teacher=live), {"train": batch}
    )
    kl = kl_divergence(teacher.log_softmax(-1), student.log_softmax(-1))
    nll = -student.log_softmax(-1).gather(-1, batch.targets[:, None]).squeeze(-1)
    expected = (kl[0] + 3 * kl[2]) / 4 + 0.25 * (nll[0] + 3 * nll[2]) / 4
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert float(loss.weight) == 4.0


def test_a_live_teacher_carries_no_gradient() -> None:
    batch = make_batch([[Document([1, 0], 1)]])
    top = LiveTeacher(Tabled((batch, random_logits(1, 3, 0))), 2)(batch)
    assert not top.logprobs.requires_grad
