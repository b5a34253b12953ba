"""Model sources: whole checkpoints, first layers, fresh models, and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from motet.training.llama import make_llama
from motet.training.recipe import Checkpoint, Fresh
from motet.training.run.errors import RunError
from motet.training.run.models import load_model, load_tokenizer
from motet.training.run.sources import source_problems
from tests import tiny

LAYERS = {"llama": "model.layers", "mistral": "model.layers", "gemma": "model.layers", "gpt2": "transformer.h"}
FRESH: dict[str, Any] = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}


class AnyTokenizer:
    """As many tokens as the tiny models have."""

    def __len__(self) -> int:
        return tiny.VOCAB


def load(path: Path, **fields: Any) -> PreTrainedModel:
    tokenizer = cast("PreTrainedTokenizerBase", AnyTokenizer())
    return load_model(Checkpoint(path=str(path), **fields), path.parent, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tokenizer(root: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(Checkpoint(path="base"), root)


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_layers_alone(saved: dict[str, Path], name: str) -> None:
    """The cut model computes what the whole one computes without its last layers."""
    cut = load(saved[name], layers=1)
    whole: Any = AutoModelForCausalLM.from_pretrained(saved[name]).eval()
    owner, _, attribute = LAYERS[name].rpartition(".")
    setattr(whole.get_submodule(owner), attribute, whole.get_submodule(LAYERS[name])[:1])
    ids = torch.arange(3, 20)[None]
    assert torch.equal(cut(ids).logits, whole(ids).logits)
    assert not torch.equal(cut(ids).logits, load(saved[name])(ids).logits)


def test_entries_per_layer_are_cut(saved: dict[str, Path]) -> None:
    config: Any = load(saved["gemma"], layers=1).config
    assert (config.num_hidden_layers, len(config.layer_types)) == (1, 1)


def test_more_layers_than_there_are(saved: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="12 layers are asked for, the model has 2"):
        load(saved["llama"], layers=12)


def test_types_of_parameters(saved: dict[str, Path]) -> None:
    assert load(saved["llama"], dtype="bfloat16").dtype == torch.bfloat16
    assert load(saved["llama"]).dtype == torch.float32


def test_fresh_models_are_seeded_and_fit_the_tokenizer(root: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    shape: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 32, "tie_word_embeddings": True}
    source = Fresh(fresh=FRESH | shape | {"rms_norm_eps": 1e-5, "max_position_embeddings": 64}, tokenizer="base")
    model = load_model(source, root, tokenizer=tokenizer, seed=5)
    same = make_llama(len(tokenizer), 16, 2, 2, 32, max_length=64, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    other = load_model(source, root, tokenizer=tokenizer, seed=6)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    config: Any = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (len(tokenizer), 0, 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "llamma"}, "model.fresh.model_type: 'llamma' is unknown. Did you mean 'llama'?"),
        ({"hiden_size": 8}, "model.fresh.hiden_size: unknown field. Did you mean 'hidden_size'?"),
        ({"num_attention_heads": 5}, "model.fresh: "),
    ],
)
def test_fresh_mistakes(root: Path, tokenizer: PreTrainedTokenizerBase, change: dict[str, Any], told: str) -> None:
    with pytest.raises(RunError) as caught:
        load_model(Fresh(fresh=FRESH | change, tokenizer="base"), root, tokenizer=tokenizer)
    assert caught.value.problems[0].startswith(told)


def test_a_missing_shard_is_named_before_anything_is_loaded(saved: dict[str, Path], tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(saved["llama"])
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert list(source_problems("model.path", "shards", tmp_path)) == []
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    (problem,) = source_problems("model.path", "shards", tmp_path)
    assert problem.startswith("model.path: ")
    assert problem.endswith(f"misses 1 of {len(shards)} weight files: {shards[0].name}")


def test_damaged_files_are_named_before_anything_is_loaded(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["llama"], tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    for content in (weights.read_bytes()[:-100], b"nothing"):
        weights.write_bytes(content)
        (problem,) = source_problems("model.path", "cut", tmp_path)
        assert problem.startswith(f"model.path: {weights} is damaged: ")
        with pytest.raises(RunError, match="cut cannot be loaded: SafetensorError"):
            load(tmp_path / "cut")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (problem,) = source_problems("model.path", "adapter", tmp_path)
    assert "is an adapter alone: train it with tuning.merge=true" in problem


def test_absent_tensors_are_not_made_up(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["llama"], tmp_path / "more")
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    (tmp_path / "more" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(RunError, match=r"lacks or misshapes model\.layers\.2\."):
        load(tmp_path / "more")


def test_a_model_narrower_than_its_tokenizer_is_refused(saved: dict[str, Path], root: Path) -> None:
    tokenizer = load_tokenizer(Checkpoint(path="base"), root)
    with pytest.raises(RunError, match=f"the model has {tiny.VOCAB} tokens, but its tokenizer has ids up to"):
        load_model(Checkpoint(path=str(saved["llama"])), root, tokenizer=tokenizer)


def test_paths_that_do_not_exist(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = source_problems("model.path", "bse", root)
    assert problem == f"model.path: {root / 'bse'} does not exist. Did you mean 'base'?"
    (tmp_path / "empty").mkdir()
    (problem,) = source_problems("model.path", "empty", tmp_path)
    assert "has no config.json" in problem
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (problem,) = source_problems("members.a.path", "some/model", root)
    assert "HF_HUB_OFFLINE forbids asking the hub" in problem
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert list(source_problems("members.a.path", "some/model", root)) == []


def test_a_folder_without_a_tokenizer(saved: dict[str, Path]) -> None:
    with pytest.raises(RunError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(Checkpoint(path=str(saved["llama"])), saved["llama"].parent)
