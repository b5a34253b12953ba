"""What is computed again changes nothing but memory, and what is kept by itself is what is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from motet.training import llama
from motet.training.run import recomputation
from motet.training.run.errors import RunError
from motet.training.run.identity import recipe_hash
from motet.training.run.recomputation import activation_bytes, apply, choose
from motet.training.run.session import Session
from tests.training.run.workshop import recipe

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def no_model(model: object) -> bool:
    return False


def gradients(root: Path, tmp_path: Path, setting: str | bool, **changes: Any) -> dict[str, torch.Tensor]:
    session = Session(recipe(tmp_path / "run", gradient_checkpointing=setting, **changes), root=root)
    torch.manual_seed(7)
    session.loss(0).total.backward()
    found = {name: parameter.grad for name, parameter in session.parameters.items()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", [{"type": "lora", "r": 4, "dropout": 0.2}, {"type": "full"}])
@pytest.mark.parametrize("setting", ["selective", True])
def test_gradients_are_the_same_bit_by_bit(
    root: Path, tmp_path: Path, setting: str | bool, tuning: dict[str, Any], precision: str, monkeypatch: Any
) -> None:
    """Dropout included, and products that are kept."""
    monkeypatch.setattr(recomputation, "SMALLEST_INNER", 8)
    monkeypatch.setattr(llama, "runs_fast", no_model)  # whose sums have another order
    changes: dict[str, Any] = {"tuning": tuning, "precision": precision}
    plain, again = (gradients(root, tmp_path, kind, **changes) for kind in (False, setting))
    assert plain
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def kept_bytes(kind: recomputation.Recomputation) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    model: Any = qwen().train()
    apply(kind, model)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hidden = torch.randn(1, 200, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _output = model.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    return sum(kept.values())


def test_whole_layers_keep_their_input_alone() -> None:
    assert kept_bytes("layers") < 0.2 * kept_bytes("none")


def test_auto_keeps_what_is_little_and_repeats_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qwen()
    assert choose("auto", model, 1000) == "none"
    tokens = 2 * 1000 * recomputation.LITTLE // activation_bytes(model, 1000, "none")

    class Memory:
        available = 4 * activation_bytes(model, tokens, "products")

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert choose("auto", model, tokens) == "products"
    Memory.available //= 3
    assert choose("auto", model, tokens) == "layers"
    assert choose(False, model, tokens) == "none"
    assert choose(True, model, 1) == "layers"
    assert choose("selective", model, 1) == "products"


def test_an_architecture_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = qwen()
    monkeypatch.setattr(Qwen2ForCausalLM, "supports_gradient_checkpointing", False)
    assert choose("auto", model, 10**9) == "none"
    with pytest.raises(RunError, match=r"gradient_checkpointing: Qwen2ForCausalLM has none; allowed: false, auto"):
        choose(True, model, 1)


def test_a_run_may_be_resumed_with_another_setting(tmp_path: Path) -> None:
    plain, again = (recipe(tmp_path / "run", gradient_checkpointing=setting) for setting in (False, True))
    assert recipe_hash(plain) == recipe_hash(again)
