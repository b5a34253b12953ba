"""`motet init`: what lies in folders becomes an operator's file that can be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from motet.cli import app
from motet.experts.bundle import ExpertBundle, ModelReference, fingerprint, write_bundle
from motet.operator.file import ConfigError, load
from motet.operator.preflight import prepare
from motet.operator.scaffold import scaffold
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

WIDE = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}


def expert(folder: Path, partner: Path, **fields: object) -> None:
    tokenizer = byte_tokenizer()
    save_with(folder, tokenizer)
    card = {"strategy": "proxy_tuning", "weight": 1.2, "partner": ModelReference.of(partner.name, partner), **fields}
    known = {"name": folder.name, "objective": "sft", "vocab_size": tokenizer.size}
    write_bundle(
        folder, ExpertBundle.model_validate({**known, "tokenizer_fingerprint": fingerprint(tokenizer.hf), **card})
    )


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger model, a small one, an expert made from it, and what is no model."""
    folder = tmp_path_factory.mktemp("zoo")
    save_with(folder / "big", byte_tokenizer(), **WIDE)
    save_with(folder / "deep" / "er" / "small", byte_tokenizer())
    expert(folder / "tuned", folder / "deep" / "er" / "small")
    (folder / "data").mkdir()
    (folder / "data" / "rows.jsonl").write_text("{}")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_the_file_can_be_served_and_says_what_was_made_for_what(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    ended = CliRunner().invoke(app, ["init", str(zoo), "--out", str(file)])
    assert ended.exit_code == 0, ended.output
    assert "left out: models.broken:" in ended.output
    assert "3 models and 2 compositions" in ended.output
    configuration = load(file)
    assert list(configuration.settings.models) == ["big", "small", "tuned"]
    prepare(configuration)
    assert scaffold([zoo], tmp_path).compositions == {
        "big-tuned": {
            "strategy": "proxy_tuning",
            "base": "big",
            "expert": "tuned",
            "antiexpert": "small",
            "alpha": 1.2,
        },
        "big-contrastive": {"strategy": "contrastive", "base": "big", "amateur": "small"},
    }


def test_paths_are_relative_where_models_lie_beside_the_file(zoo: Path) -> None:
    assert {model.name: model.path for model in scaffold([zoo], zoo).models} == {
        "big": "big",
        "small": "deep/er/small",
        "tuned": "tuned",
    }
    assert [model.path for model in scaffold([zoo / "big"], zoo / "deep").models] == ["../big"]


def test_names_are_told_apart(zoo: Path) -> None:
    assert [model.name for model in scaffold([zoo / "big", zoo / "deep", zoo / "big"], zoo).models] == [
        "big",
        "small",
        "big-2",
    ]


def test_a_partner_is_known_by_its_weights(zoo: Path, tmp_path: Path) -> None:
    """Set against another model, an expert would mean something else."""
    save_with(tmp_path / "stranger", byte_tokenizer())
    found = scaffold([zoo / "big", zoo / "tuned", tmp_path / "stranger"], tmp_path)
    assert list(found.compositions) == ["big-contrastive"]


def test_models_of_other_vocabularies_are_not_composed(zoo: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.hf.add_tokens(["<of another kind>"])
    save_with(tmp_path / "other", tokenizer, vocab_size=tokenizer.size + 1)
    found = scaffold([zoo / "big", tmp_path / "other"], tmp_path)
    assert not found.compositions
    assert "# What folders do not tell" in found.text()
    assert "Here they are apart: big; other." in found.text()


def test_what_one_model_can_do_is_written_out(zoo: Path, tmp_path: Path) -> None:
    text = scaffold([zoo / "big"], tmp_path).text()
    assert "apart" not in text
    offered = "  #   big-dola: {strategy: layer_contrast, base: big}\n"
    assert offered in text
    head, _, _ = text.partition(" {}  # take the braces away")
    file = tmp_path / "models.yaml"
    file.write_text(f"{head}\n{offered.replace('#', ' ')}")
    prepare(load(file))


@pytest.mark.parametrize(("place", "said"), [("nowhere", "does not exist"), ("data", "no model lies in")])
def test_where_nothing_lies_nothing_is_written(zoo: Path, tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        scaffold([zoo / place], tmp_path)


def test_a_file_is_not_written_over(zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("models: {}")
    ended = CliRunner().invoke(app, ["init", str(zoo), "-o", str(file)])
    assert ended.exit_code == 1
    assert "--force" in ended.output
    assert file.read_text() == "models: {}"
    assert CliRunner().invoke(app, ["init", str(zoo), "-o", str(file), "--force"]).exit_code == 0
