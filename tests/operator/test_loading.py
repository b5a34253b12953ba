"""From the operator's file to a loaded engine: what cannot be served is refused at the start, all of it together."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import sentencepiece
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from motet.models.tokenizer import Tokenizer
from motet.operator import preflight
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine
from motet.operator.memory import weight_bytes
from motet.operator.preflight import prepare
from tests.fakes import byte_tokenizer

CONTRAST = {"strategy": "contrastive", "base": "one", "amateur": "two"}


def save_model(folder: Path, tokenizer: Tokenizer, *, padding: int = 0) -> None:
    """A random model whose output layer has `padding` rows more than the tokenizer has tokens."""
    config = LlamaConfig(
        vocab_size=tokenizer.size + padding,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.single_id("<|end|>"),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "one", byte_tokenizer())
    save_model(folder / "padded", byte_tokenizer(), padding=5)
    save_model(folder / "other", byte_tokenizer(extra=["zz"]))
    save_model(folder / "bare", byte_tokenizer(chat_template=None))
    save_model(folder / "broken", byte_tokenizer())
    (folder / "broken" / "model.safetensors").write_bytes(b"\x00" * 100)
    save_model(folder / "mute", byte_tokenizer())
    (folder / "mute" / "tokenizer.json").write_text("{")
    save_model(folder / "narrow", byte_tokenizer(extra=["zz"]))
    byte_tokenizer(extra=["zz", "yy", "xx"]).hf.save_pretrained(folder / "narrow")
    return folder


def write(folder: Path, models: dict[str, Any], compositions: dict[str, Any] | None = None) -> Path:
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": models, "compositions": compositions or {}}))
    return file


def refused(folder: Path, models: dict[str, Any], compositions: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(write(folder, models, compositions)))
    return str(refusal.value)


async def test_members_of_padded_widths_are_composed(models: Path) -> None:
    names = {"one": {"path": "one"}, "two": {"path": "padded", "template": "plain", "dtype": "bfloat16"}}
    engine, registry = load_engine(load(write(models, names, {"mix": CONTRAST})))
    try:
        assert engine.models["one"].vocab_size == engine.models["two"].vocab_size == 260
        assert (engine.models["one"].dtype, engine.models["two"].dtype) == ("float32", "bfloat16")
        assert [registry.members[name].template for name in ("one", "two")] == ["chat", "plain"]
        assert registry.card("mix")["parent"] == "one"
        assert engine.supports(registry.named("mix")) is None
    finally:
        await engine.close()


def test_unlike_vocabularies_in_a_named_composition(models: Path) -> None:
    message = refused(models, {"one": {"path": "one"}, "two": {"path": "other"}}, {"mix": CONTRAST})
    assert message.startswith("compositions.mix: vocabularies differ")
    assert "'zz'" in message


def test_everything_that_cannot_be_loaded_is_named(models: Path) -> None:
    message = refused(
        models,
        {name: {"path": name} for name in ("one", "broken", "mute", "narrow")},
    )
    lines = message.splitlines()
    assert any(line.startswith("models.broken: ") for line in lines)
    assert any(line.startswith("models.mute: the tokenizer of") for line in lines)
    assert "models.narrow: the model has 261 tokens, but its tokenizer has ids up to 262." in lines
    assert "models.one" not in message


async def test_a_sentencepiece_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama 2's first checkpoints come: without tokenizer.json."""
    pieces = io.BytesIO()
    cast(Any, sentencepiece).SentencePieceTrainer.train(
        sentence_iterator=iter(["a red kite over the harbour", "seven boats and one kite"] * 20), model_writer=pieces,
        model_type="bpe", vocab_size=300, byte_fallback=True, bos_id=1, eos_id=2, unk_id=0, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    folder = tmp_path / "m"
    save_model(folder, byte_tokenizer(), padding=100)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(pieces.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    engine, registry = load_engine(load(write(tmp_path, {"m": {"path": "m"}})))
    await engine.close()
    tokenizer = registry.members["m"].tokenizer
    assert tokenizer.decode(tokenizer.encode("seven kites")) == "seven kites"
    monkeypatch.setattr(preflight, "find_spec", dict[str, object]().get)  # no package is installed
    (folder / "tokenizer.model").write_bytes(b"broken")
    assert "pip install sentencepiece protobuf" in refused(tmp_path, {"m": {"path": "m"}})


def test_a_template_that_does_not_exist(models: Path) -> None:
    message = refused(models, {"bare": {"path": "bare", "template": "chat"}})
    assert message == "models.bare.template: the model has no chat template."


def test_rules_about_texts_that_are_no_token(models: Path) -> None:
    rules = {"strategy": "rules", "base": "one", "token_offsets": {"two letters": 1.0}}
    assert "compositions.r: composition.token_offsets" in refused(models, {"one": {"path": "one"}}, {"r": rules})


def test_a_config_of_no_known_architecture(models: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "nothing-known"}))
    byte_tokenizer().hf.save_pretrained(tmp_path / "odd")
    assert "models.odd: " in refused(tmp_path, {"odd": {"path": "odd"}})


def test_a_quantised_checkpoint_is_not_quantised_again(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "one", tmp_path / "packed")
    config = tmp_path / "packed" / "config.json"
    written = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    config.write_text(json.dumps(written))
    message = refused(tmp_path, {"packed": {"path": "packed", "quantize": "int8"}})
    assert message == "models.packed: quantize: the checkpoint is already quantised (gptq); leave it out."


def test_weights_to_guess_with_stand_beside_whole_ones(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "one", tmp_path / "one")
    message = refused(tmp_path, {"one": {"path": "one", "quantize": "int8", "draft_quantize": "int4"}})
    assert message == "models.one: draft_quantize: its own weights are quantised already (int8); leave it out."


@pytest.mark.parametrize(
    ("engine", "dtype", "reason"),
    [
        ({}, "bfloat16", "`engine.speculation: auto` makes no guesses in bfloat16"),
        ({"speculation": "off"}, "float32", "`engine.speculation` is off"),
        ({"speculation": {"draft": "ngram"}}, "bfloat16", "`engine.speculation` guesses from the text alone"),
        ({"speculation": {}}, "bfloat16", None),
        ({}, "float32", None),
    ],
)
def test_a_draft_that_nobody_asks_is_told_of(
    models: Path, tmp_path: Path, engine: dict[str, Any], dtype: str, reason: str | None
) -> None:
    shutil.copytree(models / "one", tmp_path / "one")
    model = {"path": "one", "draft_quantize": "int8", "dtype": dtype}
    content = yaml.safe_dump({"models": {"one": model}, "engine": engine})
    (tmp_path / "models.yaml").write_text(content, encoding="utf-8")
    warnings = [text for text in prepare(load(tmp_path / "models.yaml")).warnings if "draft_quantize" in text]
    assert len(warnings) == (reason is not None)
    assert all(text.startswith(f"models.one.draft_quantize: {reason}") for text in warnings)


def test_a_draft_counts_as_memory(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "one", tmp_path / "one")
    file = write(tmp_path, {"plain": {"path": "one"}, "twofold": {"path": "one", "draft_quantize": "int8"}})
    prepared = prepare(load(file))
    members = prepared.registry.members
    plain, twofold = (weight_bytes(prepared.sources[name], members[name].info) for name in ("plain", "twofold"))
    assert 1.1 * plain < twofold < 1.5 * plain
    engine, _ = load_engine(load(file))
    assert engine.models["twofold"].num_parameters == engine.models["plain"].num_parameters


def test_a_quantised_member_keeps_its_names_and_size(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "one", tmp_path / "one")
    file = write(tmp_path, {"plain": {"path": "one"}, "small": {"path": "one", "quantize": "int8"}})
    engine, _ = load_engine(load(file))
    plain, small = engine.models["plain"], engine.models["small"]
    assert (small.num_parameters, small.dtype) == (plain.num_parameters, plain.dtype)
