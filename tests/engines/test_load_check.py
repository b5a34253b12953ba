"""The load check: right models pass, whatever their statistics; every wrong computation is found, and named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.engines.torch import Member, ModelLoadError, attention, load_member, loading, norms, packing
from motet.engines.torch.attention import AttentionForm
from motet.engines.torch.norms import FusedRMSNorm
from motet.engines.torch.recording import first_tensor
from motet.engines.torch.replacements import replace_modules
from tests.lifelike import FAMILIES, FIRST, HEAD, MASSIVE, QUIET, lifelike, text

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lifelike")
    for family in FAMILIES:
        lifelike(family).save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


def load(folder: Path, dtype: torch.dtype, **options: Any) -> Member:
    return load_member("m", str(folder), dtype=dtype, sample=text(), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_are_lifelike(family: str) -> None:
    made = lifelike(family)
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        seen["hidden"] = first_tensor(args, given)

    layer: Any = made.model.layers[1]  # type: ignore[union-attr, index]
    layer.register_forward_pre_hook(keep, with_kwargs=True)
    made.set_attn_implementation("eager")
    with torch.no_grad():
        weights = torch.cat(made(torch.tensor([text()]), output_attentions=True).attentions)
    hidden = seen["hidden"][0]
    assert hidden[0, MASSIVE].abs() > 50 * hidden.abs().median()
    assert weights[:, :, 10:, 0].amax() > 0.5, "no head looks at the first token"
    weight = cast(Tensor, layer.input_layernorm.weight)
    assert weight[QUIET] > 100 * weight.abs().median()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    + [(family, torch.float16) for family in FAMILIES if family != "gpt-oss"],  # its experts pass float16's range
)
def test_right_models_pass(family: str, dtype: torch.dtype, folders: dict[str, Path], caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="motet"):
        load(folders[family], dtype)
    assert caplog.messages == []


def formed(change: Callable[[AttentionForm], AttentionForm]) -> Callable[[pytest.MonkeyPatch], None]:
    """Our attention function understands a layer wrongly."""

    def mutate(patch: pytest.MonkeyPatch) -> None:
        def form(scaling: float, window: int | None, softcap: float | None, sinks: Tensor | None) -> AttentionForm:
            return change(AttentionForm(scaling, window, softcap, sinks))

        patch.setattr(attention, "AttentionForm", form)

    return mutate


def prepared(change: Callable[[Any], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """The model is another one behind our attention: `change` is done to every module."""

    def replaced(made: nn.Module, inputs: Any) -> None:
        replace_modules(made, inputs)
        for module in list(made.modules()):
            change(module)

    return lambda patch: patch.setattr(loading, "replace_modules", replaced)


def wider_window(form: AttentionForm) -> AttentionForm:
    return replace(form, window=None if form.window is None else form.window + 1)


def without(*names: str) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, nn.Identity())

    return change


def lower_frequencies(module: nn.Module) -> None:
    for name, tensor in module.named_buffers(recurse=False):
        if name.endswith("inv_freq"):
            tensor.div_(8)


def louder_rotation(module: nn.Module) -> None:
    for name, value in list(vars(module).items()):
        if name.endswith("attention_scaling"):
            setattr(module, name, 1.2 * value)


def unshifted(module: Any) -> None:
    if isinstance(module, FusedRMSNorm):
        module.weight.data.sub_(1)


def swapped(module: Any) -> None:
    if hasattr(module, "gate_proj") and hasattr(module, "act_fn"):
        module.gate_proj, module.up_proj = module.up_proj, module.gate_proj


def other_single_tokens(module: Any) -> None:
    def hook(_: nn.Module, args: Any, output: Tensor) -> None:
        rows = output[:, : len(attention.STEP.get().decode)]
        rows.copy_(rows.roll(1, -1))

    if isinstance(module, nn.Embedding):
        module.register_forward_hook(hook)


ANSWERS, WHOLE = "layer [01]: attention: its answers", "the whole model: its distributions of"
MUTATIONS: list[tuple[str, str, Callable[[pytest.MonkeyPatch], None], str]] = [
    ("no window", "gemma2", formed(lambda form: replace(form, window=None)), ANSWERS),
    ("no window", "gpt-oss", formed(lambda form: replace(form, window=None)), ANSWERS),
    ("a window too wide by one", "gemma3", formed(wider_window), ANSWERS),
    ("the usual scaling", "gemma3", formed(lambda form: replace(form, scaling=HEAD**-0.5)), ANSWERS),
    ("scaling", "llama", formed(lambda form: replace(form, scaling=1.1 * form.scaling)), ANSWERS),
    ("no soft cap", "gemma2", formed(lambda form: replace(form, softcap=None)), ANSWERS),
    ("no sinks", "gpt-oss", formed(lambda form: replace(form, sinks=None)), ANSWERS),
    ("no query norm", "gemma3", prepared(without("q_norm")), "layer 0: attention: its queries"),
    ("no key norm", "qwen3", prepared(without("k_norm")), "layer 0: attention: its keys"),
    ("rotary frequencies", "llama", prepared(lower_frequencies), "layer 0: attention: its queries"),
    ("rotary frequencies", "gemma3", prepared(lower_frequencies), "layer 0: attention: its queries"),
    ("rotary scaling", "gpt-oss", prepared(louder_rotation), "layer 0: attention: its queries"),
    ("w for 1 + w", "gemma3", prepared(unshifted), "layer 0: attention: its queries"),
    ("w for 1 + w", "gemma2", prepared(unshifted), WHOLE),
    ("gate for up", "qwen2", prepared(swapped), f"{WHOLE} prompts"),
    ("single tokens", "qwen2", prepared(other_single_tokens), f"{WHOLE} single tokens"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("what", "family", "mutate", "message"), MUTATIONS, ids=[f"{m[0]}-{m[1]}" for m in MUTATIONS])
def test_a_wrong_computation_is_refused_by_name(
    what: str,
    family: str,
    mutate: Callable[[pytest.MonkeyPatch], None],
    message: str,
    dtype: torch.dtype,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    with pytest.raises(ModelLoadError, match=message):
        load(folders[family], dtype)


def fused_without_one(patch: pytest.MonkeyPatch) -> None:
    class Plain(FusedRMSNorm):
        def __init__(self, weight: Tensor, eps: float) -> None:
            super().__init__(weight - 1 if weight.dtype == torch.float32 else weight, eps)

    patch.setattr(norms, "FusedRMSNorm", Plain)


def heads_not_normed(patch: pytest.MonkeyPatch) -> None:
    plain = FusedRMSNorm.forward

    def forward(norm: FusedRMSNorm, x: Tensor) -> Tensor:
        return x if x.shape[-1] == HEAD else plain(norm, x)

    patch.setattr(FusedRMSNorm, "forward", forward)


def parts_exchanged(patch: pytest.MonkeyPatch) -> None:
    plain = packing.JointProjection.part

    def part(joint: packing.JointProjection, x: Tensor, index: int) -> Tensor:
        return plain(joint, x, 1 - index if len(joint.widths) == 2 else index)

    patch.setattr(packing.JointProjection, "part", part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "mutate", "part"),
    [
        ("gemma3", fused_without_one, "layer 0: q_norm"),
        ("qwen3", heads_not_normed, "layer 0: q_norm"),
        ("qwen2", parts_exchanged, "layer 0: gate_proj"),
    ],
)
def test_a_wrong_replacement_is_left_out(
    family: str,
    mutate: Callable[[pytest.MonkeyPatch], None],
    part: str,
    dtype: torch.dtype,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mutate(monkeypatch)
    if "proj" in part and not packing.can_pack(dtype):
        pytest.skip(f"this processor packs no {dtype} weights")
    with caplog.at_level(logging.WARNING, logger="motet"):
        load(folders[family], dtype)
    (message,) = caplog.messages
    assert "left as transformers has it" in message
    assert message.startswith(part) or "norm" in part


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    made = lifelike("qwen2")
    made.model.layers[1].mlp.up_proj.weight.data[5, 7:9] = value  # type: ignore[union-attr, index]
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"2 of the 6144 values of model\.layers\.1\.mlp\.up_proj\.weight are NaN"):
        load(tmp_path, dtype)


def test_a_dtype_that_does_not_reach_is_named(tmp_path: Path) -> None:
    made = lifelike("qwen2")
    made.model.layers[0].mlp.down_proj.weight.data[0] = 6e4  # type: ignore[union-attr, index]
    made.save_pretrained(tmp_path)
    load(tmp_path, torch.bfloat16)
    with pytest.raises(ModelLoadError, match="in float16 its own plain forward gives values that are not finite"):
        load(tmp_path, torch.float16)


class Quantising:
    """Rounds what enters a linear to 255 levels per token, as quantised activations are: a forward of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        self.plain = linear.forward

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return self.plain((x / scale).round() * scale)


class QuantisingByBatch(Quantising):
    """One scale, of 15 levels, for everything that is computed together."""

    def __call__(self, x: Tensor) -> Tensor:
        scale = x.abs().amax() / 7
        return self.plain((x / scale).round() * scale)


def quantised(made: PreTrainedModel, kind: type[Quantising] = Quantising) -> PreTrainedModel:
    for module in made.modules():
        if type(module) is nn.Linear:
            module.forward = kind(module)  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_quantised_activations_stay(family: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    member = load(folders[family], dtype, adapt=quantised)
    linears = [module for module in member.model.modules() if type(module) is nn.Linear]
    assert len(linears) == 15
    assert all(isinstance(linear.forward, Quantising) for linear in linears)


def test_quantisation_by_the_batch_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelLoadError, match=r"its layers are quantised \(Linear\)") as refusal:
        load(folders["qwen2"], torch.float32, adapt=partial(quantised, kind=QuantisingByBatch))
    assert "architecture" not in str(refusal.value)


def test_the_check_leaves_no_trace(folders: dict[str, Path]) -> None:
    member = load(folders["gemma2"], torch.float32)
    assert member.cache.nbytes == 0
    assert member.num_forwards == 0
    config: Any = member.model.config
    assert (config.sliding_window, config.attn_logit_softcapping) == (20, 50.0)
    assert not any(vars(module)["_forward_pre_hooks"] for module in member.model.modules())
    assert FIRST not in member.info.eos_token_ids
