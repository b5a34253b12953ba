"""What is wrong with a checkpoint's files is told before weights are read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import torch as tensor_files

from motet.models.checkpoint import OwnCodeError, load_weights, read_config, read_tokenizer
from motet.models.files import LFS_POINTER, adapter_problems, problems
from motet.models.prequantised import method_of, problem
from tests.fakes import byte_tokenizer
from tests.ggufs import tiny_qwen

POINTER = LFS_POINTER + b"v1\noid sha256:0123\nsize 4000000000\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer()
    tiny_qwen(tokenizer).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tokenizer.hf.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_sound_folder(folder: Path) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert list(problems(folder)) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00001"])
def test_pointers_of_git_lfs(folder: Path, name: str) -> None:
    file = next(folder.glob(f"{name}*"))
    file.write_bytes(POINTER)
    (said,) = problems(folder)
    assert f"git-lfs pointers instead of files ({file.name})" in said
    assert "git lfs pull" in said


def test_a_pointer_instead_of_a_gguf_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(POINTER)
    (said,) = problems(file)
    assert "git-lfs pointers instead of files (model.gguf)" in said


def test_shards_that_are_missing_or_cut_off(folder: Path) -> None:
    first, second, *others = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-8])
    missing, damaged = problems(folder)
    assert missing.endswith(f"misses 1 of {len(others) + 2} weight files: {first.name}")
    assert damaged.startswith(f"{second} is damaged")


def test_no_weights_and_what_lies_there_instead(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    assert list(problems(folder, weights=False)) == []
    (folder / "q4.gguf").write_bytes(b"GGUF")
    (said,) = problems(folder)
    assert "holds no weights" in said
    assert "to serve q4.gguf, name the file itself" in said


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_configuration_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    (said,) = problems(folder)
    assert said.startswith(str(folder / "config.json"))


def test_an_adapter_without_its_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (said,) = adapter_problems(tmp_path)
    assert "adapter_model.safetensors" in said


def test_code_of_a_checkpoint_is_never_run(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    with pytest.raises(OwnCodeError, match="Python code that it brings along"):
        read_config(str(folder))
    edit_config(folder, model_type="qwen2")
    assert read_config(str(folder)).model_type == "qwen2"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with suppress(OwnCodeError):  # transformers' own class reads it, or it is refused
        read_tokenizer(str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"quant_method": "aqlm", "in_group_size": 8}, "aqlm"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed"),
        ({"quant_method": "dreamt-of"}, "supported types"),
    ],
)
def test_quantisations_that_cannot_be_loaded_here(folder: Path, written: dict[str, Any], said: str) -> None:
    edit_config(folder, quantization_config=written)
    config = read_config(str(folder))
    assert method_of(config) == written["quant_method"]
    refusal = problem(config, "cpu")
    assert refusal is not None
    assert repr(written["quant_method"]) in refusal
    assert said in refusal


def test_plain_weights_need_nothing(folder: Path) -> None:
    config = read_config(str(folder))
    assert method_of(config) is None
    assert problem(config, "cpu") is None


def test_files_that_are_not_loaded_are_not_judged(folder: Path) -> None:
    """A clone may hold pointers of other frameworks' weights, and Mistral's own format beside the usual one."""
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    (folder / "tf_model.h5").write_bytes(POINTER)
    (folder / "consolidated.safetensors").write_bytes(b"cut off")
    assert list(problems(folder)) == []


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    """transformers makes an empty tokenizer for some architectures."""
    edit_config(folder, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*"), *folder.glob("vocab*")):
        file.unlink()
    with pytest.raises(ValueError, match="holds no tokenizer"):
        read_tokenizer(str(folder))


def test_a_checkpoint_that_lacks_a_tensor_is_refused(folder: Path) -> None:
    """transformers would make one up."""
    index = folder / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    name = next(name for name in tree["weight_map"] if "down_proj" in name)
    shard = folder / tree["weight_map"].pop(name)
    kept = {key: tensor for key, tensor in tensor_files.load_file(shard).items() if key != name}
    tensor_files.save_file(kept, shard, metadata={"format": "pt"})
    index.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=f"lacks or misshapes {name}"):
        load_weights(str(folder))


def test_bitsandbytes_is_known_by_its_written_name(folder: Path) -> None:
    """Files say `bitsandbytes`, transformers' table has one name per width."""
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refusal = problem(read_config(str(folder)), "cpu")
    assert refusal is None or "supported types" not in refusal
