"""Gates of the operator's file: what `config validate` says of them, and that they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from motet.cli import app
from motet.operator.file import ConfigError, load
from motet.operator.preflight import prepare
from tests.classifiers import save_classifier
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

GATE: dict[str, Any] = {"path": "bert", "labels": ["forget"], "threshold": 0.4}
GATED: dict[str, Any] = {"strategy": "gated", "gate": "touches", "composition": "mix", "otherwise": "one"}
MIX: dict[str, Any] = {"strategy": "contrastive", "base": "one", "amateur": "two"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gates")
    save_with(folder / "one", byte_tokenizer())
    save_with(folder / "other", byte_tokenizer(extra=["zz"]))
    save_classifier(folder / "bert")
    return folder


def write(folder: Path, gate: dict[str, Any] | None = None, gated: dict[str, Any] | None = None, **rest: Any) -> Path:
    file = folder / "models.yaml"
    names = {"one": "one", "two": "one", "stranger": "other"}
    models = {name: {"path": path, "dtype": "float32"} for name, path in names.items()}
    compositions = {"careful": GATED | (gated or {}), "mix": MIX}
    gates = {"touches": GATE | (gate or {})}
    file.write_text(yaml.safe_dump({"models": models, "compositions": compositions, "gates": gates, **rest}))
    return file


def test_a_gate_is_loaded_with_the_names(folder: Path) -> None:
    registry = prepare(load(write(folder))).registry
    gate = registry.gate_of("careful")
    assert gate is not None
    assert gate.config.threshold == 0.4
    assert gate.classifier.labels == (1,)
    assert registry.gate_of("mix") is None
    assert registry.gate_of(None) is None
    assert registry.plan("careful", applied=True) == registry.plan("mix")
    assert registry.plan("careful", applied=False) == registry.plan("one")


@pytest.mark.parametrize(
    ("gate", "gated", "said"),
    [
        (
            {"labels": ["forgt"]},
            {},
            "gates.touches: labels: the classifier has no label 'forgt'. Did you mean",
        ),
        ({"path": "one"}, {}, "gates.touches: LlamaForCausalLM is no sequence classifier"),
        ({"path": "nowhere"}, {}, "nowhere is no folder"),
        ({"treshold": 0.5}, {}, "gates.touches.treshold: unknown field. Did you mean 'threshold'?"),
        ({}, {"gate": "touch"}, "compositions.careful.gate: no gate is named 'touch'. Did you mean 'touches'?"),
        ({}, {"otherwise": "onne"}, "compositions.careful.otherwise: no model and no composition is named 'onne'. Did"),
        ({}, {"composition": "careful"}, "compositions.careful.composition: no model and no composition is named"),
        ({}, {"otherwize": "one"}, "compositions.careful.otherwize: unknown field. Did you mean 'otherwise'?"),
        (
            {},
            {"otherwise": "stranger"},
            "careful: otherwise: the tokens of 'stranger' are not those of 'mix'",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_served(
    folder: Path, gate: dict[str, Any], gated: dict[str, Any], said: str
) -> None:
    file = write(folder, gate, gated)
    with pytest.raises(ConfigError) as refusal:
        prepare(load(file))
    assert any(said in problem for problem in refusal.value.problems), refusal.value.problems


def test_a_policy_that_reaches_a_side_beside_the_gate_is_warned_of(folder: Path) -> None:
    policies = {"public": {"default": True, "models": {"writer": "careful", "plain": "one"}}}
    validated = CliRunner().invoke(app, ["config", "validate", str(write(folder, policies=policies))])
    assert validated.exit_code == 0, validated.output
    assert "writer has members in common with plain" in " ".join(validated.output.split())
