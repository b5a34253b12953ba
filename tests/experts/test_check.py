"""`motet experts`: listing, showing, checking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from motet.cli import app
from motet.experts.bundle import ExpertBundle, ModelReference, fingerprint, write_bundle
from tests.fakes import byte_tokenizer
from tests.operator.test_loading import save_model

PROXY = {"strategy": "proxy_tuning", "base": "large", "expert": "chat", "antiexpert": "small"}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["experts", *map(str, arguments)])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for name in ("large", "small", "chat"):
        save_model(tmp_path / name, byte_tokenizer())
    save_model(tmp_path / "stranger", byte_tokenizer(extra=["zz"]))
    save_expert(tmp_path / "chat")
    return tmp_path


def save_expert(folder: Path, **fields: Any) -> None:
    tokenizer = byte_tokenizer()
    given: dict[str, Any] = {
        "name": "chat",
        "objective": "sft",
        "tokenizer_fingerprint": fingerprint(tokenizer.hf),
        "vocab_size": tokenizer.size,
        "strategy": "proxy_tuning",
        "weight": 1.0,
        "weight_range": (0.5, 2.0),
        "base_family": "tiny",
        "partner": ModelReference.of("small", folder.parent / "small"),
    }
    write_bundle(folder, ExpertBundle(**{**given, **fields}))


def write(folder: Path, *names: str, **compositions: Any) -> Path:
    file = folder / "models.yaml"
    models = {name: {"path": name} for name in names}
    file.write_text(yaml.safe_dump({"models": models, "compositions": compositions}))
    return file


def test_list(models: Path) -> None:
    (models / "small" / "expert.json").write_text("{}")
    result = invoke("list", models)
    assert result.exit_code == 1
    row = next(line for line in result.stdout.splitlines() if line.strip().startswith("chat"))
    for cell in ("expert", "proxy_tuning", "1.0 (0.5 … 2.0)", "small", "tiny", "sft"):
        assert cell in row
    assert "small/expert.json: objective: Field required" in result.stderr
    (models / "small" / "expert.json").unlink()
    assert invoke("list", models).exit_code == 0
    assert invoke("list", models / "nowhere").exit_code == 2


def test_show(models: Path) -> None:
    assert json.loads(invoke("show", models / "chat").stdout)["partner"]["path"] == "small"
    result = invoke("show", models / "small")
    assert (result.exit_code, result.stderr.strip()) == (1, f"error: {models / 'small'} has no expert.json")


def test_a_good_bundle(models: Path) -> None:
    result = invoke("check", models / "chat")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "no problems" in result.stdout


def test_everything_that_is_wrong_with_the_files(models: Path) -> None:
    chat = models / "chat"
    (chat / "generation_config.json").unlink()
    (chat / "config.json").write_text((chat / "config.json").read_text().replace("260", "250"))
    byte_tokenizer(extra=["zz"]).hf.save_pretrained(chat)
    save_model(models / "small", byte_tokenizer())
    result = invoke("check", chat)
    assert result.exit_code == 1
    for problem in (
        "generation_config.json is missing",
        "config.json is not the file that the bundle was written with",
        "the tokenizer's fingerprint is ",
        "the tokenizer has 261 ids, the bundle says 260",
        "the model has 250 tokens, the bundle says 260",
        "the partner at ",
    ):
        assert f"error: {problem}" in result.stderr


def test_weights_that_are_missing_or_broken(models: Path) -> None:
    weights = models / "chat" / "model.safetensors"
    weights.write_bytes(b"junk")
    assert "is no safetensors file" in invoke("check", models / "chat").stderr
    weights.unlink()
    assert "holds no weights" in invoke("check", models / "chat").stderr
    (models / "chat" / "adapter_config.json").write_text("{}")
    assert "an adapter needs both" in invoke("check", models / "chat").stderr
    (models / "chat" / "adapter_model.bin").write_bytes(b"weights")
    assert "an adapter needs both" not in invoke("check", models / "chat").stderr


def test_what_is_not_at_hand_is_noted(models: Path) -> None:
    save_expert(models / "chat", partner=ModelReference(path="gone", weights="1" * 64), base={"path": "org/base"})
    result = invoke("check", models / "chat")
    assert result.exit_code == 0
    assert "note: the partner 'gone' was not found here" in result.stderr
    assert "note: the base 'org/base' has no fingerprint" in result.stderr


def test_against_models_that_it_fits(models: Path) -> None:
    result = invoke("check", models / "chat", "--against", write(models, "large", "small", "chat", mix=PROXY))
    assert (result.exit_code, result.stderr) == (0, "")


def test_against_models_that_it_does_not_fit(models: Path) -> None:
    mixes = {
        "mix": PROXY | {"antiexpert": "large"},
        "odd": {"strategy": "contrastive", "base": "chat", "amateur": "stranger"},
    }
    file = write(models, "large", "chat", "stranger", **mixes)
    result = invoke("check", models / "chat", "--against", file)
    assert result.exit_code == 1
    for problem in (
        "no model of the file has the weights of the partner 'small'",
        "compositions.mix: composition.antiexpert: 'large' is not the partner",
        "compositions.odd: 'stranger' has another vocabulary than 'chat'",
    ):
        assert f"error: {problem}" in result.stderr
    result = invoke("check", models / "chat", "--against", write(models, "stranger"))
    assert "no other model of the file has the expert's vocabulary" in result.stderr
    assert "error: " in invoke("check", models / "chat", "--against", models / "nothing.yaml").stderr
