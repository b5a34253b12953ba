"""What is trained: everything, a share of it in rounds, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import Linear
from torch import nn

from motet.training.optim import make_optimizers
from motet.training.recipe import AdamW, Checkpoint, Full, Half, Lora, Muon
from motet.training.run.adapted_linear import AdaptedLinear
from motet.training.run.errors import RunError
from motet.training.run.models import load_model, load_tokenizer
from motet.training.run.tuning import FreezingRounds, compute_dtype, merged, prepare, trained_parameters


def base(root: Path, **fields: Any) -> Any:
    source = Checkpoint(path="base", **fields)
    return load_model(source, root, tokenizer=load_tokenizer(source, root))


def test_full_tuning_trains_every_parameter_in_float32(root: Path) -> None:
    model = prepare(base(root, dtype="bfloat16"), Full(), base="base")
    parameters = trained_parameters(model)
    assert len(parameters) == len(list(model.parameters()))
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


def test_adapters_are_rank_stabilised_and_leave_the_head_alone(root: Path) -> None:
    model: Any = prepare(base(root, dtype="bfloat16"), Lora(r=4, alpha=8), base="../base")
    parameters = trained_parameters(model)
    assert all("lora_" in name for name in parameters)
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert len(parameters) == 2 * 7 * 2  # two matrices for each of seven projections in two layers
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 8 / 4**0.5
    assert model.peft_config["default"].base_model_name_or_path == "../base"
    plain: Any = prepare(base(root), Lora(r=4, alpha=8, rank_stabilized=False), base="base")
    assert plain.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapted_layer_computes_what_pefts_own_does(root: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model: Any = prepare(base(root), Lora(r=4), base="base")
    layer: Any = model.base_model.model.model.layers[0].mlp.up_proj
    assert type(layer) is AdaptedLinear
    nn.init.normal_(cast("Any", layer.lora_B["default"]).weight)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer.base_layer.to(dtype)
    layer.base_layer.bias = nn.Parameter(torch.randn(32).to(dtype))
    expected, got = Linear.forward(layer, x), layer(x)
    assert got.dtype == expected.dtype == dtype
    exact = Linear.forward(layer.float(), x.float())
    ours, theirs = ((values - exact).abs().mean() for values in (got, expected))
    assert ours <= 3 * theirs + 1e-5  # at most 2.6 over 100 seeds: the adapter's weights are rounded, too
    with model.disable_adapter():
        assert torch.equal(layer(x.float()), layer.base_layer(x.float()))


def test_targets_that_do_not_exist(root: Path) -> None:
    with pytest.raises(RunError, match=r"tuning.targets: .*nothing_like_it"):
        prepare(base(root), Lora(targets=("nothing_like_it",)), base="base")


def test_merging_keeps_the_function(root: Path) -> None:
    model: Any = prepare(base(root), Lora(r=4), base="base").eval()
    for name, parameter in trained_parameters(model).items():
        nn.init.normal_(parameter, std=0.3 if "lora_B" in name else 1.0)
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    assert (before - base(root)(ids).logits).abs().max() > 0.1
    whole: Any = merged(model)
    assert not any("lora" in name for name, _ in whole.named_parameters())
    assert torch.allclose(whole(ids).logits, before, atol=1e-4)


def test_merging_a_head_that_is_tied_keeps_the_function(root: Path) -> None:
    """The embedding that it shared its weights with stays as it was."""
    tied = base(root)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    model: Any = prepare(tied, Lora(r=4, targets=("q_proj", "lm_head")), base="base").eval()
    for name, parameter in trained_parameters(model).items():
        nn.init.normal_(parameter, std=0.3 if "lora_B" in name else 1.0)
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    assert torch.allclose(cast(Any, merged(model))(ids).logits, before, atol=1e-4)


def named(count: int) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(torch.ones(1)) for i in range(count)}


@given(count=st.integers(1, 40), share=st.floats(0, 1), rounds=st.integers(1, 6), seed=st.integers(0, 9))
def test_rounds_freeze_their_share_and_depend_on_seed_and_round_alone(
    count: int, share: float, rounds: int, seed: int
) -> None:
    steps = 3 * rounds
    parameters = named(count)
    ahead = FreezingRounds(parameters, Half(frozen=share, rounds=rounds), seed, steps)
    for step in range(steps):
        ahead.enter(step)
        frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        assert len(frozen) == round(count * share)
        assert frozen == ahead.frozen(step // 3)
        resumed = named(count)
        FreezingRounds(resumed, Half(frozen=share, rounds=rounds), seed, steps).enter(step)
        assert frozen == {name for name, parameter in resumed.items() if not parameter.requires_grad}


def test_other_rounds_and_seeds_freeze_other_tensors() -> None:
    parameters = named(40)
    draws = {
        FreezingRounds(parameters, Half(rounds=4), seed, 8).frozen(number) for seed in range(3) for number in range(4)
    }
    assert len(draws) == 12


@pytest.mark.parametrize("setting", [AdamW(weight_decay=0.5), Muon()])
def test_frozen_tensors_do_not_move(setting: AdamW | Muon) -> None:
    parameters = {"a": nn.Parameter(torch.ones(3, 3)), "b": nn.Parameter(torch.ones(3, 3))}
    optimizers = make_optimizers(parameters, setting)
    for frozen in ("a", "b"):
        before = parameters[frozen].detach().clone()
        for name, parameter in parameters.items():
            parameter.requires_grad_(name != frozen)
        other = next(parameter for name, parameter in parameters.items() if name != frozen)
        start = other.detach().clone()
        other.square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(parameters[frozen], before)
        assert not torch.equal(other, start)


def test_weight_decay_is_for_matrices() -> None:
    parameters = {"matrix": nn.Parameter(torch.ones(2, 2)), "norm": nn.Parameter(torch.ones(2))}
    (optimizer,) = make_optimizers(parameters, AdamW(weight_decay=0.1))
    decays = {group["params"][0].ndim: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {2: 0.1, 1: 0.0}


def test_muon_takes_hidden_matrices_alone(root: Path) -> None:
    parameters = trained_parameters(prepare(base(root), Full(), base="base"))
    muon, adamw = make_optimizers(parameters, Muon())
    names = {id(parameter): name for name, parameter in parameters.items()}
    hidden = {names[id(parameter)] for parameter in muon.param_groups[0]["params"]}
    others = {names[id(parameter)] for parameter in adamw.param_groups[0]["params"]}
    assert all("proj" in name for name in hidden)
    assert "model.embed_tokens.weight" in others
    assert hidden | others == set(parameters)


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert compute_dtype("float32", cpu) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16
    assert compute_dtype("auto", torch.device("cuda")) == torch.bfloat16
