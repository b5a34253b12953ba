"""Ends of answers and tokenizers of real checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from motet.models.info import ModelInfo
from motet.models.tokenizer import Tokenizer
from motet.operator.preflight import read_model
from motet.operator.settings import EngineConfig, ModelConfig
from motet.operator.sources import find_source

VARIABLE = "MOTET_REAL_MODELS"
ENDS = {
    "gemma3-270m": {"<eos>"},
    "gemma3-270m.gguf": {"<eos>"},
    "qwen-0.5b": {"<|im_end|>"},
    "qwen-0.5b.gguf": {"<|im_end|>"},
    "qwen-1.5b": {"<|im_end|>"},
    "qwen-1.5b.gguf": {"<|im_end|>"},
}


def facts(name: str) -> tuple[Tokenizer, ModelInfo]:
    """The tokenizer and what the configurations say, without weights; skips the test where the model is not there."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no folder of real checkpoints")
    root = Path(os.environ[VARIABLE])
    if not (root / name).exists():
        pytest.skip(f"{root} lacks {name}")
    model = ModelConfig(path=name)
    return read_model(name, model, find_source(model, root), EngineConfig(), "cpu")


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_an_answer(name: str) -> None:
    tokenizer, info = facts(name)
    assert {tokenizer.backend.id_to_token(token) for token in info.eos_token_ids} >= ENDS[name]


@pytest.mark.parametrize("name", ENDS)
def test_prompts_are_read_whole(name: str) -> None:
    tokenizer, _ = facts(name)
    text = "a red kite over the harbour " * 3000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("kite")) < 5, "nothing is padded"
    assert tokenizer.start_id is not None
