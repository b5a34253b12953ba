"""Which tokens end an answer: checkpoints name them in three places, and seldom all of them in one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from motet.models.ends import end_token_ids, ends_within
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.operator.loading_vllm import inspect
from motet.operator.sources import find_sources
from tests.fakes import byte_tokenizer
from tests.operator.test_loading import save_model

END, ASSISTANT, USER = (byte_tokenizer().single_id(text) for text in ("<|end|>", "<|assistant|>", "<|user|>"))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([None, 3], (3,)),
        ([[5, 3], 3, 4], (5, 3, 4)),
        ([None, None], ()),
    ],
)
def test_all_that_are_named_once_each(sources: list[Any], expected: tuple[int, ...]) -> None:
    assert end_token_ids(None, *(SimpleNamespace(eos_token_id=ids) for ids in sources)) == expected


def test_only_what_can_be_said() -> None:
    assert ends_within(6, (5, 9), [2, 5, -1]) == (5, 2)


def set_ends(folder: Path, file: str, value: object) -> None:
    path = folder / file
    written: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(written | {"eos_token_id": value}))


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        (END, END, "<|assistant|>", {END, ASSISTANT}),  # a ChatML model whose generation configuration is its base's
        (END, ASSISTANT, "<|end|>", {END, ASSISTANT}),
        ([END, ASSISTANT], END, "<|user|>", {END, ASSISTANT, USER}),
        (None, END, "<|assistant|>", {END, ASSISTANT}),  # a converted checkpoint without generation_config.json
    ],
)
async def test_both_engines_know_the_same(
    tmp_path: Path, generation: object, config: object, tokenizer: str, expected: set[int]
) -> None:
    hf: Any = byte_tokenizer().hf
    save_model(tmp_path / "m", byte_tokenizer())
    hf.eos_token = tokenizer
    hf.save_pretrained(tmp_path / "m")
    set_ends(tmp_path / "m", "config.json", config)
    if generation is None:
        (tmp_path / "m" / "generation_config.json").unlink()
    else:
        set_ends(tmp_path / "m", "generation_config.json", generation)
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"models": {"m": {"path": "m"}}}))
    configuration = load(tmp_path / "models.yaml")
    engine, _ = load_engine(configuration)
    loaded = engine.models["m"].eos_token_ids
    await engine.close()
    assert set(loaded) == expected
    _, infos, _ = inspect(configuration, find_sources(configuration))
    assert infos["m"].eos_token_ids == loaded
