"""Repacked and joined weights compute what the plain modules compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from motet.server.engines.torch.norms import FusedRMSNorm, fuse_norms
from motet.server.engines.torch.packing import PackedLinear, ProjectionPart, pack_linears

IDS = torch.arange(3, 30)[None]


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "gpt2"])
def test_logits_stay(name: str, paths: Mapping[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(paths[name], dtype=torch.float32).eval()
    with torch.inference_mode():
        before = model(input_ids=IDS, use_cache=False).logits
        fuse_norms(model)
        pack_linears(model)
        after = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    assert not any(type(module) is nn.Linear for module in model.modules())


def test_siblings_are_joined_and_hold_nothing_afterwards(paths: Mapping[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(paths["qwen"], dtype=torch.float32).eval()
    with torch.inference_mode():
        pack_linears(model)
        model(input_ids=IDS, use_cache=False)
    parts = [module for module in model.modules() if isinstance(module, ProjectionPart)]
    assert len(parts) == 2 * 5  # q, k, v, gate, up of two layers
    assert all(part.joint._input is None for part in parts)  # pyright: ignore[reportPrivateUsage]


def test_a_joint_projection_never_answers_for_another_input() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)

    torch.manual_seed(0)
    attention = Attention()
    one, two = torch.randn(3, 8), torch.randn(3, 8)
    with torch.inference_mode():
        expected = [attention.q_proj(one), attention.k_proj(two), attention.q_proj(two), attention.v_proj(one)]
        pack_linears(attention)
        assert isinstance(attention.q_proj, ProjectionPart)
        found = [attention.q_proj(one), attention.k_proj(two), attention.q_proj(two), attention.v_proj(one)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_only_modules_that_compute_the_norm_are_replaced() -> None:
    class Shifted(nn.Module):
        """Gemma's form: `1 + weight`."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((8,), 0.5))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    model = nn.Sequential(Shifted(), nn.RMSNorm(8, eps=1e-6), nn.LayerNorm(8), nn.Linear(8, 8))
    fuse_norms(model)
    assert [isinstance(module, FusedRMSNorm) for module in model] == [False, True, False, False]
    with torch.inference_mode():
        pack_linears(model)
    assert isinstance(model[3], PackedLinear)
