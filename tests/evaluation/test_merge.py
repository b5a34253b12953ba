"""Merged weights are the formula's, and only models of one shape are merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from motet.evaluation.merge import write_merge
from motet.evaluation.settings import RecipeError
from motet.training.llama import make_llama
from tests.fakes import byte_tokenizer


def model(folder: Path, seed: int, hidden: int = 16) -> Path:
    made = make_llama(64, hidden, 1, 2, 24, max_length=32, seed=seed)
    made.save_pretrained(folder)
    byte_tokenizer().hf.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_the_average_of_two_and_task_arithmetic_with_a_reference(tmp_path: Path) -> None:
    """Tied weights are moved once: the embedding and the head of these models are one tensor."""
    a, b, c = (model(tmp_path / str(seed), seed) for seed in range(3))
    write_merge(tmp_path / "half", a, {b: 0.5})
    write_merge(tmp_path / "arithmetic", a, {b: 2.0, c: -1.0}, reference=c)
    first, second, third = weights(a), weights(b), weights(c)
    assert not torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])
    for name, tensor in weights(tmp_path / "half").items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    for name, tensor in weights(tmp_path / "arithmetic").items():
        torch.testing.assert_close(tensor, first[name] + 2 * (second[name] - third[name]))
    assert AutoTokenizer.from_pretrained(tmp_path / "half").chat_template


def test_unlike_shapes_and_missing_models_are_refused(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", 0), model(tmp_path / "b", 1, hidden=32)
    with pytest.raises(RecipeError, match="has another shape than the base"):
        write_merge(tmp_path / "out", a, {b: 0.5})
    with pytest.raises(RecipeError, match="merge: "):
        write_merge(tmp_path / "out", a, {tmp_path / "none": 0.5})
    assert not (tmp_path / "out").exists()
