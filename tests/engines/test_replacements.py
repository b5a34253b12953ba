"""Fused norms, repacked and joined linears compute what the modules that they replace compute, or are left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from motet.engines.torch import packing
from motet.engines.torch.norms import FusedRMSNorm
from motet.engines.torch.packing import PackedLinear, ProjectionPart, can_pack, padded_rows
from motet.engines.torch.recording import record
from motet.engines.torch.replacements import replace_modules, replaceable

IDS = list(range(3, 30))
BATCH = torch.tensor([IDS])


def loaded(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def replaced(model: PreTrainedModel) -> PreTrainedModel:
    recording = record(model, IDS, replaceable(model))
    model.set_attn_implementation("eager")
    replace_modules(model, recording.inputs)
    return model


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "gpt2"])
def test_logits_stay(name: str, paths: Mapping[str, Path]) -> None:
    model = loaded(paths[name])
    with torch.inference_mode():
        before = model(input_ids=BATCH, use_cache=False).logits
        after = replaced(model)(input_ids=BATCH, use_cache=False).logits
    torch.testing.assert_close(after, before, atol=2e-4, rtol=1e-4)
    assert not any(type(module) is nn.Linear for module in model.modules())
    norms = sum(isinstance(module, FusedRMSNorm) for module in model.modules())
    assert norms == {"llama": 5, "qwen": 5, "gemma": 9, "gpt2": 0}[name]


def test_siblings_are_joined_and_hold_nothing_afterwards(paths: Mapping[str, Path]) -> None:
    model = replaced(loaded(paths["qwen"]))
    with torch.inference_mode():
        model(input_ids=BATCH, use_cache=False)
    parts = [module for module in model.modules() if isinstance(module, ProjectionPart)]
    assert len(parts) == 2 * 5  # q, k, v, gate, up of two layers
    assert all(part.joint._input is None for part in parts)  # pyright: ignore[reportPrivateUsage]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)


def test_a_joint_projection_never_answers_for_another_input() -> None:
    attention = Attention()
    one, two = torch.randn(3, 8), torch.randn(3, 8)
    with torch.inference_mode():
        expected = [attention.q_proj(one), attention.k_proj(two), attention.q_proj(two), attention.v_proj(one)]
        replace_modules(attention, dict.fromkeys(("q_proj", "k_proj", "v_proj"), one))
        assert isinstance(attention.q_proj, ProjectionPart)
        found = [attention.q_proj(one), attention.k_proj(two), attention.q_proj(two), attention.v_proj(one)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_siblings_of_unlike_inputs_are_not_joined() -> None:
    attention = Attention()
    with torch.inference_mode():
        replace_modules(attention, {name: torch.randn(3, 8) for name in ("q_proj", "k_proj", "v_proj")})
    assert all(isinstance(module, PackedLinear) for module in attention.children())


class Scaled(nn.Module):
    """A root-mean-square norm; by `1 + weight` where `shift` is 1, as Gemma's."""

    def __init__(self, weight: torch.Tensor, shift: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eps = 1e-6
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (self.shift + self.weight.float())).type_as(x)


class Centred(Scaled):
    """No root-mean-square norm: the mean is taken away."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(-1, keepdim=True))


def outliers(width: int) -> torch.Tensor:
    """Weights as real norms have them: some of several hundreds, most small, some of them next to nothing."""
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 0.3
    weight[3], weight[width // 2], weight[5] = 700.0, -250.0, 1e-4
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_judged_by_each_of_its_values(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """Beside outputs of hundreds every small one disappeared in the tolerance: `1 + w` was taken for `w`."""
    weight = outliers(64)
    model = nn.Sequential(Scaled(weight), Scaled(weight, 1.0), Centred(weight), nn.LayerNorm(64)).to(dtype)
    x = (torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 20).to(dtype)
    expected = [module(x) for module in model]
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        replace_modules(model, {str(i): x for i in range(3)})
    assert [type(module) for module in model] == [FusedRMSNorm, FusedRMSNorm, Centred, nn.LayerNorm]
    assert caplog.messages == [
        "2: left as transformers has it, which is slower: Centred is not torch's root-mean-square norm"
    ]
    for module, values in zip(model, expected, strict=True):
        torch.testing.assert_close(module(x), values, rtol=2 * torch.finfo(dtype).eps, atol=0)


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_pre_hook(lambda _, args: (args[0].round(),))


def patched(linear: nn.Linear) -> None:
    plain = linear.forward
    linear.forward = lambda x: plain(x.round())  # type: ignore[method-assign]


def marked(linear: nn.Linear) -> None:
    linear.quantization_scheme = {"input_activations": {"num_bits": 8}}  # type: ignore[assignment]


def scaled(linear: nn.Linear) -> None:
    linear.register_buffer("input_scale", torch.ones(1))


@pytest.mark.parametrize("change", [hooked, patched, marked, scaled])
def test_a_linear_that_does_more_is_left_alone(change: Any) -> None:
    """Packing lost what quantises the activations."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    change(model[0])
    assert list(replaceable(model)) == ["1"]
    with torch.inference_mode():
        replace_modules(model, {"0": torch.randn(3, 8), "1": torch.randn(3, 8)})
    assert [type(module) for module in model] == [nn.Linear, PackedLinear]


def test_few_numbers_of_rows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles kernels for each, and keeps them; the answers are those of the rows alone."""
    torch.manual_seed(0)
    linear, computed = nn.Linear(24, 8), set[int]()
    packed = PackedLinear(linear.weight.detach(), linear.bias.detach())
    product = packed.product
    monkeypatch.setattr(packed, "product", lambda x: (computed.add(x.shape[:-1].numel()), product(x))[1])  # pyright: ignore
    with torch.inference_mode():
        for rows in (0, *range(1, 300), 1000, 4095):
            x = torch.randn(rows, 24)
            found = packed(x)
            assert found.shape == (rows, 8)
            assert packing.same_linear(found, linear.weight, linear.bias, x)
        batch = torch.randn(3, 7, 24)
        torch.testing.assert_close(packed(batch), linear(batch), atol=1e-5, rtol=1e-5)
    assert len(computed) < 60
    assert all(rows <= padded_rows(rows, torch.float32) <= rows * 9 / 8 for rows in range(1, 5000))
    assert len({padded_rows(rows, torch.float32) for rows in range(1, 4097)}) == 16 + 8 * 8


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN has no bfloat16 on this processor")
def test_few_rows_of_bfloat16_are_computed_as_four() -> None:
    """Which is faster, and makes a row's bits those of a row alone: a block of guesses rounds as one token does."""
    torch.manual_seed(0)
    packed = PackedLinear(torch.randn(96, 64).bfloat16(), None)
    x = torch.randn(4, 64).bfloat16()
    assert [padded_rows(rows, torch.bfloat16) for rows in range(6)] == [0, 4, 4, 4, 4, 5]
    with torch.inference_mode():
        whole = packed(x)
        assert all(torch.equal(packed(x[:rows]), whole[:rows]) for rows in range(4))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate_proj, self.up_proj = nn.Linear(96, 40), nn.Linear(96, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_joint_projection_is_left_out(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    part = packing.JointProjection.part

    def swapped(self: packing.JointProjection, x: torch.Tensor, index: int) -> torch.Tensor:
        return part(self, x, 1 - index)

    monkeypatch.setattr(packing.JointProjection, "part", swapped)
    mlp = Mlp().to(dtype)
    model = nn.ModuleDict({"layers": nn.ModuleList([mlp])})
    x = torch.randn(8, 96).to(dtype)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        replace_modules(model, {f"layers.0.{name}": x for name in ("gate_proj", "up_proj")})
    if packing.can_pack(dtype):
        assert [message.partition(", which")[0] for message in caplog.messages] == [
            "layer 0: gate_proj and 1 more: left as transformers has it"
        ]
        assert all(isinstance(module, PackedLinear) for module in mlp.children())
