"""Heads that lie beside a model, from the folder to the composition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import torch as safetensors

from motet.experts.bundle import ModelReference
from motet.experts.schema import HeadSpec
from motet.models.files import HEAD
from motet.models.heads import GateHead, SimilarityHead
from tests.fakes import byte_tokenizer
from tests.operator.test_experts import bundle, loaded, refused
from tests.operator.test_loading import save_model

ROUTED = {"strategy": "routed", "base": "gate", "assistant": "large"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("large", "small"):
        save_model(tmp_path / name, byte_tokenizer())
    return tmp_path


def gated(models: Path, hidden_size: int = 16) -> None:
    """A model beside a gate, made for `large`."""
    save_model(models / "gate", byte_tokenizer())
    safetensors.save_file(GateHead(hidden_size).state_dict(), models / "gate" / HEAD)
    partner = ModelReference.of("large", models / "large")
    bundle(
        models / "gate", role="base", strategy="routed", head=HeadSpec(kind="gate"), partner=partner, weight=None,
        weight_range=None,
    )  # fmt: skip


async def test_a_head_is_served_with_its_model_alone(models: Path) -> None:
    gated(models)
    registry = await loaded(models, {"gate": {}, "large": {}, "small": {}}, {"mix": ROUTED})
    assert registry.infos["gate"].head == "gate"
    assert registry.named("mix").streams[1].model == "large"
    message = refused(models, {"gate": {}, "large": {}}, {"mix": {**ROUTED, "base": "large"}})
    assert "needs a gate or router that was trained on its base, and 'large' has none." in message
    assert "Models with a gate or router: gate." in message
    message = refused(models, {"gate": {}, "large": {}, "small": {}}, {"mix": {**ROUTED, "assistant": "small"}})
    assert "'small' is not the partner" in message


def test_a_head_that_is_missing_or_another_models(models: Path) -> None:
    gated(models, 15)
    assert "the head of this model has {'linear.weight': [1, 16]" in refused(models, {"gate": {}})
    (models / "gate" / HEAD).unlink()
    assert refused(models, {"gate": {}}) == (
        "models.gate: expert.json says that a gate lies beside the weights, but there is no head.safetensors."
    )


async def test_a_head_of_clusters_wants_an_adapter_for_each(models: Path) -> None:
    save_model(models / "near", byte_tokenizer())
    head = SimilarityHead(16, ["maths", "law"])
    safetensors.save_file(head.state_dict(), models / "near" / HEAD)
    spec = HeadSpec(kind="similarity", clusters=("maths", "law"))
    bundle(models / "near", role="base", strategy="adapters", head=spec, weight=None, weight_range=None)
    members: dict[str, dict[str, Any]] = {"near": {}, "large": {}, "small": {}}
    composition = {"strategy": "adapters", "base": "near", "adapters": ["large", "small"]}
    registry = await loaded(models, members, {"mix": composition})
    assert registry.infos["near"].clusters == ("maths", "law")
    assert [stream.weight for stream in registry.named("mix").streams] == [0.5, 0.5, 0.5]
    message = refused(models, members, {"mix": composition | {"adapters": "large"}})
    assert "composition.adapters: 1 adapter for the 2 clusters that 'near' knows; give one for each" in message
    message = refused(models, members, {"mix": composition | {"base": "large"}})
    assert "needs a similarity that was trained on its base, and 'large' has none." in message
