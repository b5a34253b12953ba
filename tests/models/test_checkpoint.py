"""Configurations of checkpoints: read once for each state of their file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoConfig, LlamaConfig

from motet.models.checkpoint import read_config


def write(folder: Path, **fields: Any) -> None:
    content = LlamaConfig(hidden_size=8, num_attention_heads=1, **fields).to_dict()
    (folder / "config.json").write_text(json.dumps(content))


def test_a_configuration_is_read_once_and_anew_when_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    original = cast(Any, AutoConfig).from_pretrained

    def counted(place: object, **options: Any) -> Any:
        reads.append(place)
        return original(place, **options)

    monkeypatch.setattr(AutoConfig, "from_pretrained", counted)
    write(tmp_path, vocab_size=10)
    first = read_config(str(tmp_path))
    first.vocab_size = 3  # whoever changes what it was given changes nobody else's
    assert read_config(str(tmp_path)).vocab_size == 10
    assert len(reads) == 1
    write(tmp_path, vocab_size=1000)
    assert read_config(str(tmp_path)).vocab_size == 1000
    assert len(reads) == 2
