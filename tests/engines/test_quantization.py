"""Weights in 4 and 8 bits: a quantised member is exactly the model that its stored weights describe."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from motet.composers.plan import Plan, Stream, single
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import Member, ModelLoadError, TorchEngine, load_member, quantization
from motet.engines.torch.int4 import int4_kernel
from motet.engines.torch.model import ModelWork
from motet.engines.torch.native import processor_flags
from motet.engines.torch.quantization import quantize, weight_bytes
from motet.engines.torch.quantized import (
    FIT_ROUNDS,
    GROUP,
    MAX_ROWS,
    Int4VnniWeight,
    Int4Weight,
    Int8Weight,
    QuantizedEmbedding,
    QuantizedLinear,
    StoredWeight,
    fit_int4,
    interleaved_outputs,
    multiply_spread,
    quantize_int4,
    quantize_int8,
)
from motet.models.info import Quantization

KINDS: list[Quantization] = ["int8", "int4"]
IDS = list(range(3, 40))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(weight: Tensor, kind: Quantization) -> Tensor:
    """What a weight becomes, by the definition of its form."""
    if kind == "int4" and weight.shape[1] % GROUP == 0:
        return meaning(*fit_int4(weight)).to(weight.dtype)
    stored = quantize_int8(weight)
    return (stored.codes.float() * stored.scale.float()[:, None]).to(weight.dtype)


def meaning(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(code − 8) · scale + zero."""
    groups = (codes.float() - 8).view(len(codes), -1, GROUP)
    return (groups * scale.float()[..., None] + zero.float()[..., None]).flatten(1)


@torch.no_grad()
def dequantised(path: Path, kind: Quantization) -> PreTrainedModel:
    """transformers' own model with the values that the stored weights have."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    table = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(values(module.weight, kind))
    model.get_input_embeddings().weight = nn.Parameter(values(table, "int8"))
    return model


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Quantization:
    return request.param


@pytest.fixture(scope="module")
def quantised(paths: Mapping[str, Path], kind: Quantization) -> dict[str, Member]:
    return {
        name: load_member(name, str(paths[name]), dtype=torch.float32, quantization=kind)
        for name in ("llama", "llama-b", "qwen", "gemma")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(100, 96), (64, 32), (131, 160)])
@pytest.mark.parametrize("make", [quantize_int4, quantize_int8])
def test_products_are_those_of_the_stored_values(make: Any, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """With few rows and with many: the kernels and the spread weights; element by element, in units of rounding.

    Where the kernel reads activations in 8 bits, the product is that of what it reads."""
    weight = (0.05 * normal(*shape)).to(dtype)
    form = "int4" if make is quantize_int4 else "int8"
    stored: StoredWeight = make(weight)
    exact_weight = (
        values(weight.float(), form) if dtype == torch.float32 else torch.cat(list(stored.spread(torch.float32)))
    )
    for rows in (1, 4, 5, MAX_ROWS[form], MAX_ROWS[form] + 1):
        x = normal(rows, shape[1], seed=1).to(dtype)
        read = stored.read(x).double() if len(x) <= MAX_ROWS[form] or not spreads_many_rows() else x.double()
        exact = F.linear(read, exact_weight.double())
        size = F.linear(read.abs(), exact_weight.double().abs())
        eps = max(torch.finfo(dtype).eps, 1e-5)
        assert (((stored.multiply(x).double() - exact).abs()) <= eps * exact.abs() + eps / 2 * size + 1e-7).all(), rows


def spreads_many_rows() -> bool:
    return int4_kernel() is None or "amx_bf16" in processor_flags()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [quantize_int4, quantize_int8])
def test_a_row_does_not_depend_on_its_batch(make: Any, dtype: torch.dtype) -> None:
    """Up to MAX_ROWS bit by bit, so that one request is answered as among sixteen."""
    stored = make((0.05 * normal(192, 128)).to(dtype))
    x = normal(16, 128, seed=1).to(dtype)
    together = stored.multiply(x)
    assert all(torch.equal(together[i : i + 1], stored.multiply(x[i : i + 1])) for i in range(16))


def test_what_is_spread_is_what_was_stored() -> None:
    weight = normal(200, 96)
    assert interleaved_outputs() is not None, "this processor's kernel interleaves in a way of its own"
    torch.testing.assert_close(torch.cat(list(quantize_int4(weight).spread(torch.float32))), values(weight, "int4"))
    assert torch.equal(torch.cat(list(quantize_int8(weight).spread(torch.float32))), values(weight, "int8"))


def test_bfloat16_weights_are_read_by_the_kernel_where_there_is_one() -> None:
    weight = normal(200, 96).bfloat16()
    stored = quantize_int4(weight)
    assert isinstance(stored, Int4Weight if int4_kernel() is None else Int4VnniWeight)
    assert isinstance(quantize_int4(weight.float()), Int4Weight)
    assert close_in_most(torch.cat(list(stored.spread(torch.bfloat16))), values(weight, "int4"))


def close_in_most(found: Tensor, expected: Tensor) -> bool:
    """Sums in another order may move a level by a rounding, and a weight between two codes to the other one."""
    return bool(((found - expected).abs() <= 0.02 * expected.abs().max()).float().mean() > 0.99)


@pytest.mark.skipif(int4_kernel() is None, reason="no kernel on this machine")
@pytest.mark.parametrize("power", [1, 3])
def test_the_kernel_fits_as_well(power: int) -> None:
    """The same codes but for ties, and the same squared error."""
    kernel, weight = int4_kernel(), (0.05 * normal(128, 256) ** power).bfloat16()
    weight[3, :32], weight[4, :32] = 0.0, -3.0
    assert kernel is not None
    found, expected = kernel.fit(weight, FIT_ROUNDS), fit_int4(weight)
    assert (found[0] == expected[0]).float().mean() > 0.995
    errors = [float((meaning(*parts) - weight.float()).square().sum()) for parts in (found, expected)]
    assert 0.998 < errors[0] / errors[1] < 1.002
    assert torch.equal(meaning(*found)[3:5, :32], weight[3:5, :32].float())


@pytest.mark.skipif(int4_kernel() is None, reason="no kernel on this machine")
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_do_not_become_so(number: float) -> None:
    weight = normal(64, 64).bfloat16()
    weight[1, 40] = number
    found = torch.cat(list(quantize_int4(weight).spread(torch.float32)))
    assert not found[1, 32:].isfinite().any()
    assert found[0].isfinite().all()


def test_least_squares_beats_rounding_between_the_extremes() -> None:
    weight = normal(64, 256) ** 3  # heavy tails
    groups = weight.reshape(len(weight), -1, GROUP)
    least = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - least) / 15
    rounded = (((groups - least) / step).round() * step + least).flatten(1)
    assert (values(weight, "int4") - weight).norm() < 0.95 * (rounded - weight).norm()


@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_groups_of_one_value_are_exact(constant: float, kind: Quantization) -> None:
    weight = torch.full((64, 32), constant)
    assert torch.equal(values(weight, kind), weight)


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma"])
def test_a_member_is_the_model_with_the_stored_values(
    name: str, quantised: Mapping[str, Member], paths: Mapping[str, Path], kind: Quantization
) -> None:
    """48 inputs are no multiple of 32: int4 falls back to int8 there, and down_proj (96) has 4 bits."""
    member = quantised[name]
    linears = [module for module in member.model.modules() if isinstance(module, QuantizedLinear)]
    stored = {type(linear.stored) for linear in linears}
    assert stored == ({Int8Weight} if kind == "int8" else {Int8Weight, Int4Weight})
    member.cache.clear()
    member.cache.resize(1, len(IDS))
    with torch.inference_mode():
        expected = dequantised(paths[name], kind)(torch.tensor([IDS]), use_cache=False).logits[0]
        pieces = [member.forward([ModelWork(0, a, IDS[a:b], b - a)]) for a, b in ((0, 20), (20, 21), (21, len(IDS)))]
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-3, rtol=1e-3)
    member.cache.clear()


async def test_identities_hold_among_quantised_members(quantised: dict[str, Member]) -> None:
    """A shift of strength 0, and one of an expert against itself, are the base."""
    engine = TorchEngine(quantised)
    nothing = Plan((Stream("base", "qwen"), Stream("expert", "llama", 0.0), Stream("antiexpert", "llama-b", 0.0)))
    itself = Plan((Stream("base", "qwen"), Stream("expert", "llama", 1.0), Stream("antiexpert", "llama", -1.0)))
    try:
        runs: list[list[tuple[int, float]]] = []
        for plan in (single("qwen"), nothing, itself):
            context = (5, 17, 90, 31)
            request = GenerationRequest(
                "r", plan, (context,) * len(plan.streams), SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
            )
            runs.append([(output.token, output.logprob) async for output in engine.generate(request)])
    finally:
        await engine.close()
    for run in runs[1:]:
        assert [token for token, _ in run] == [token for token, _ in runs[0]]
        assert [logprob for _, logprob in run] == pytest.approx([logprob for _, logprob in runs[0]], abs=1e-5)


def test_the_size_is_known_beforehand(quantised: Mapping[str, Member], kind: Quantization) -> None:
    for name, member in quantised.items():
        with torch.device("meta"):
            plain: PreTrainedModel = cast("Any", AutoModelForCausalLM).from_config(member.model.config)
        held = {id(weight): weight.nbytes for weight in member.model.parameters()}
        for module in member.model.modules():
            joint = getattr(module, "joint", None)
            for holder in (module, getattr(joint, "linear", None)):
                if isinstance(holder, QuantizedLinear | QuantizedEmbedding):
                    held |= {
                        id(tensor): tensor.nbytes
                        for tensor in vars(holder.stored).values()
                        if isinstance(tensor, Tensor)
                    }
                if isinstance(holder, QuantizedLinear):
                    held |= {id(bias): bias.nbytes for bias in holder.parameters()}
        assert sum(held.values()) == weight_bytes(plain, kind, 4), name
        assert sum(held.values()) < 0.5 * weight_bytes(plain, None, 4)


def test_a_tied_head_in_8_bits_is_the_table_itself(paths: Mapping[str, Path]) -> None:
    model: Any = load_member("g", str(paths["gemma"]), dtype=torch.float32, quantization="int8").model
    assert model.lm_head.stored is model.get_input_embeddings().stored


def small(hidden: int, intermediate: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).requires_grad_(False)


def test_what_cannot_be_stored_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = small(32, 40)  # 40 inputs of down_proj: neither 32 nor 16 divide them
    with caplog.at_level(logging.WARNING):
        quantize(model, "int4")
    assert type(cast("Any", model).model.layers[0].mlp.down_proj) is nn.Linear
    assert "down_proj" in caplog.text
    with pytest.raises(
        quantization.QuantizationError, match=r"83% of its weights cannot be stored in int8: model\.layers\.0"
    ):
        quantize(small(36, 40), "int8")


def test_a_model_without_linears_is_refused(paths: Mapping[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match="of its weights cannot be stored in int4"):
        load_member("gpt2", str(paths["gpt2"]), dtype=torch.float32, quantization="int4")


def torch_int4(weight: Tensor) -> Int4Weight:
    return Int4Weight(*fit_int4(weight))


def swapped(weight: Tensor) -> Int4Weight:
    return torch_int4(weight.flip(0))


def turned(weight: Tensor) -> Int4Weight:
    stored = torch_int4(weight)
    stored.packed = (stored.packed << 4) | (stored.packed >> 4)
    return stored


def unscaled(weight: Tensor) -> Int4Weight:
    """One group's scale is another's."""
    stored = torch_int4(weight)
    stored.scale_and_zero = stored.scale_and_zero.flip(0)
    return stored


@pytest.mark.parametrize("wrong", [swapped, turned, unscaled])
def test_wrong_weights_are_left_out(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored wrongly is stored in 8 bits instead, so that the model still is the one that it was."""
    monkeypatch.setattr(quantization, "quantize_int4", wrong)
    model = small(64, 64)
    quantize(model, "int4")
    head: Any = model.lm_head
    assert isinstance(head.stored, Int8Weight)


def test_many_rows_read_each_weight_once_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.engines.torch.quantized.SPREAD_BYTES", 64 * 96 * 4)
    stored = quantize_int4(normal(200, 96))
    assert [len(block) for block in stored.spread(torch.float32)] == [64, 64, 64, 8]
    x = normal(3, 96, seed=1)
    torch.testing.assert_close(multiply_spread(x, stored), stored.multiply(x), atol=1e-4, rtol=1e-4)
