"""Training over bfloat16 weights: what becomes float32, and that it goes down as float32 does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from motet.training.run.metrics import Metrics
from motet.training.run.session import Session
from motet.training.run.train import train
from tests.training.run.workshop import recipe

LORA = {"type": "lora", "r": 4}


@pytest.fixture(scope="module")
def outliers(root: Path) -> str:
    """`base` in bfloat16 with channels of hundreds in its residual stream, as real checkpoints have them."""
    model: Any = AutoModelForCausalLM.from_pretrained(root / "base")
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] += 20.0
        for layer in model.model.layers:
            layer.input_layernorm.weight[3] = 0.01
            layer.post_attention_layernorm.weight[3] = 0.01
        model.model.norm.weight[3] = 0.001
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(root / "outliers")
    AutoTokenizer.from_pretrained(root / "base").save_pretrained(root / "outliers")
    return "outliers"


def dtypes(session: Session) -> set[torch.dtype]:
    trained = set(map(id, session.parameters.values()))
    return {parameter.dtype for parameter in session.model.parameters() if id(parameter) not in trained}


def test_frozen_weights_keep_the_checkpoints_type(root: Path, outliers: str, tmp_path: Path) -> None:
    def session(**changes: Any) -> Session:
        return Session(recipe(tmp_path / "run", **{"tuning": LORA, "model": {"path": outliers}, **changes}), root=root)

    narrow = session(precision="bfloat16", members={"m": {"path": outliers}})
    assert dtypes(narrow) == {torch.bfloat16}
    assert {parameter.dtype for parameter in narrow.models[1].parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in narrow.parameters.values()} == {torch.float32}
    assert dtypes(session(precision="float32")) == {torch.float32}
    assert dtypes(session(precision="bfloat16", model={"path": "base"})) == {torch.float32}
    assert dtypes(session(precision="bfloat16", model={"path": outliers, "dtype": "float32"})) == {torch.float32}
    full = session(precision="bfloat16", tuning={"type": "full"})
    assert {parameter.dtype for parameter in full.parameters.values()} == {torch.float32}


@pytest.mark.parametrize(("tuning", "least"), [(LORA, 0.08), ({"type": "full"}, 0.5)], ids=["lora", "full"])
def test_it_goes_down_as_float32_does(
    root: Path, outliers: str, tmp_path: Path, tuning: dict[str, Any], least: float
) -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        seen: list[Metrics] = []
        chosen = recipe(
            tmp_path / precision,
            model={"path": outliers},
            tuning=tuning,
            precision=precision,
            optimizer={"type": "adamw", "lr": 3e-2 if tuning is LORA else 1e-2},
            schedule={"steps": 60, "warmup": 4},
            batch={"rows": 8},
        )
        train(chosen, root=root, progress=seen.append)
        losses[precision] = [metrics.loss for metrics in seen]
    fallen = losses["float32"][0] - losses["float32"][-1]
    assert fallen > least
    assert abs(losses["bfloat16"][-1] - losses["float32"][-1]) < 0.2 * fallen
