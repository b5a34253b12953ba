"""Muon and AdamW."""

from __future__ import annotations

from typing import cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from motet.training.optim import POLAR_EXPRESS, MuonOptimizer, adamw, muon_and_adamw, orthogonalize


@given(st.floats(0.01, 1.0))
def test_the_polynomials_push_singular_values_towards_one(value: float) -> None:
    for a, b, c in POLAR_EXPRESS:
        value = a * value + b * value**3 + c * value**5
    assert 0.15 < value < 1.9


@given(rows=st.integers(1, 12), extra=st.integers(0, 12), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_orthogonalize_keeps_singular_values_within_their_bounds(rows: int, extra: int, seed: int) -> None:
    """In bfloat16 too: without the safety factor rounding put single values at 3.6."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randn((3, rows, rows + extra), generator=generator)
    left, _, right = cast("tuple[Tensor, Tensor, Tensor]", torch.linalg.svd(matrices, full_matrices=False))
    result = orthogonalize(left @ torch.diag(torch.linspace(0.2, 1.0, rows)) @ right)
    rotated = left.mT @ result.float() @ right.mT
    values = rotated.diagonal(dim1=-2, dim2=-1)
    assert values.min().item() > 0.05
    assert values.max().item() < 2.1
    assert values.mean(-1).min().item() > 0.35
    off_diagonal = rotated - torch.diag_embed(values)
    assert off_diagonal.abs().max().item() < 0.6


def test_muon_step_has_the_size_of_an_adamw_step_and_goes_downhill() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(16, 64))
    before = weight.detach().clone()
    weight.grad = torch.randn(16, 64)
    MuonOptimizer([weight], lr=0.1).step()
    update = before - weight.detach()
    rms = update.square().mean().sqrt().item()
    assert 0.75 < rms / (0.1 * 0.2) < 1.5  # 0.2·√64 times the 1/√64 per entry of a (16, 64) with unit rows
    assert (update * weight.grad).sum().item() > 0


def test_muon_treats_a_matrix_and_its_transpose_alike() -> None:
    torch.manual_seed(1)
    wide, tall = nn.Parameter(torch.zeros(4, 9)), nn.Parameter(torch.zeros(9, 4))
    gradient = torch.randn(4, 9)
    wide.grad, tall.grad = gradient.clone(), gradient.T.clone()
    MuonOptimizer([wide, tall], lr=0.1).step()
    torch.testing.assert_close(wide.detach(), tall.detach().T)


def test_muon_skips_parameters_without_gradient() -> None:
    still, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    moved.grad = torch.eye(3)
    MuonOptimizer([still, moved], lr=0.1).step()
    assert torch.equal(still.detach(), torch.ones(3, 3))
    assert not torch.equal(moved.detach(), torch.ones(3, 3))


def test_adamw_first_step_is_the_sign_of_the_gradient() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([0.5, -2.0, 1e-3])
    adamw([weight], lr=0.01).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.01, 0.01, -0.01]), rtol=1e-3, atol=1e-6)


def test_muon_gets_hidden_matrices_and_adamw_the_rest() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "hidden": nn.Linear(4, 4), "lm_head": nn.Linear(4, 5)})
    muon, adam = muon_and_adamw(dict(model.named_parameters()), muon_lr=0.1, adamw_lr=0.2)
    hidden = model.get_submodule("hidden").get_parameter("weight")
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(hidden)]
    others = {id(p) for p in model.parameters()} - {id(hidden)}
    assert {id(p) for group in adam.param_groups for p in group["params"]} == others
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (0.1, 0.2)
