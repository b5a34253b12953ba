"""GGUF files: configuration, tokenizer, ends and dequantised weights, and what is refused before weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from motet.models import gguf
from motet.models.checkpoint import load_weights, read_config, read_generation_config, read_tokenizer
from tests.fakes import SPECIALS, byte_tokenizer
from tests.ggufs import tiny_qwen, write_gguf

TEXT = "Ünïcode, 12 345\n\ttabs <|user|> and <|end|>"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_dequantised_into_the_asked_dtype(file: Path, tied: bool) -> None:
    tokenizer = byte_tokenizer()
    stored = write_gguf(file, tiny_qwen(tokenizer, tied=tied), tokenizer)
    model = load_weights(str(file), dtype=torch.float32)
    state = model.state_dict()
    assert all(torch.equal(state[name], values) for name, values in stored.items())
    assert (state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()) is tied
    rounded = load_weights(str(file), dtype="auto")
    assert rounded.dtype == torch.bfloat16
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(rounded.state_dict()[name], stored[name].bfloat16())
    assert getattr(rounded, "hf_quantizer", None) is None


def test_configuration_is_the_models_own(file: Path) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_qwen(tokenizer)
    write_gguf(file, model, tokenizer)
    found, own = read_config(str(file)).to_dict(), model.config.to_dict()
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "max_position_embeddings")
    assert {name: found[name] for name in same} == {name: own[name] for name in same}
    assert found["rope_parameters"]["rope_theta"] == own["rope_parameters"]["rope_theta"]
    assert found["model_type"] == "qwen2"


def test_files_that_hold_whole_numbers_keep_their_dtype(file: Path) -> None:
    tokenizer = byte_tokenizer()
    stored = write_gguf(file, tiny_qwen(tokenizer), tokenizer, GGMLQuantizationType.F32)
    model = load_weights(str(file), dtype="auto")
    assert model.dtype == torch.float32
    assert all(torch.equal(model.state_dict()[name], values) for name, values in stored.items())


def test_tokenizer_and_chat_template(file: Path) -> None:
    ours = byte_tokenizer()
    write_gguf(file, tiny_qwen(ours), ours)
    # what lies beside the file is another model's
    byte_tokenizer(extra=["zz"], chat_template="{{ 'other' }}").hf.save_pretrained(file.parent)
    theirs = read_tokenizer(str(file))
    assert theirs.get_vocab() == ours.hf.get_vocab()
    assert theirs.chat_template == ours.chat_template
    assert theirs.encode(TEXT, add_special_tokens=False) == ours.encode(TEXT)
    assert theirs.decode(ours.encode(TEXT)) == TEXT
    assert theirs.eos_token == "<|end|>"
    assert set(SPECIALS) <= set(theirs.get_vocab())


def test_a_large_vocabulary_is_not_looked_up_by_its_name(file: Path) -> None:
    """transformers asks the hub about tokenizers of more than 100,000 tokens, and fails on the name of a file."""
    tokenizer = byte_tokenizer(extra=[f"zz{i}" for i in range(100_001)])
    write_gguf(file, tiny_qwen(tokenizer), tokenizer)
    assert len(read_tokenizer(str(file))) == tokenizer.size


def test_ends_of_text_and_of_turn(file: Path) -> None:
    tokenizer = byte_tokenizer()
    turn = tokenizer.single_id("<|user|>")
    write_gguf(file, tiny_qwen(tokenizer), tokenizer, tokenizer__ggml__eot_token_id=turn)
    found = read_generation_config(str(file))
    assert found is not None
    assert found.eos_token_id == [tokenizer.single_id("<|end|>"), turn]
    model = load_weights(str(file))
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == found.eos_token_id


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"split__count": 3}, "one of 3 parts"),
        ({"general__type": "adapter"}, "of type 'adapter'"),
    ],
)
def test_files_that_are_no_whole_model(file: Path, metadata: dict[str, Any], said: str) -> None:
    tokenizer = byte_tokenizer()
    write_gguf(file, tiny_qwen(tokenizer), tokenizer, **metadata)
    (problem,) = gguf.problems(file)
    assert said in problem


@pytest.mark.parametrize("left", [2, 40, 3000, -100])
def test_cut_off_files(file: Path, left: int) -> None:
    tokenizer = byte_tokenizer()
    write_gguf(file, tiny_qwen(tokenizer), tokenizer)
    assert list(gguf.problems(file)) == []
    file.write_bytes(file.read_bytes()[:left])
    (problem,) = gguf.problems(file)
    assert str(file) in problem


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr(gguf, "find_spec", nothing)
    file.write_bytes(b"GGUF")
    with pytest.raises(gguf.GgufError, match="pip install 'motet\\[gguf\\]'"):
        read_config(str(file))


def test_an_architecture_that_transformers_does_not_read(file: Path) -> None:
    tokenizer = byte_tokenizer()
    write_gguf(file, tiny_qwen(tokenizer), tokenizer)
    written = file.read_bytes()
    file.write_bytes(written.replace(b"qwen2", b"qwemp"))
    with pytest.raises(gguf.GgufError, match="qwemp is not supported"):
        read_config(str(file))
