"""Which engine serves a file, and what is said where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from motet.engines.vllm import internals
from motet.operator.file import ConfigError, load
from motet.operator.loading import load_engine


def refused(folder: Path, engine: dict[str, Any]) -> list[str]:
    (folder / "one").mkdir(exist_ok=True)
    (folder / "one" / "config.json").write_text("{}")
    file = folder / "models.yaml"
    file.write_text(yaml.safe_dump({"models": {"one": {"path": "one"}}, "engine": engine}))
    with pytest.raises(ConfigError) as refusal:
        load_engine(load(file))
    return refusal.value.problems


@pytest.mark.parametrize(("installed", "told"), [(None, "none is there"), ("0.40.1", "0.40.1 is installed")])
def test_vllm_is_missing_or_another(
    installed: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internals, "_version", dict.fromkeys(internals.DISTRIBUTIONS, installed).get)
    (problem,) = refused(tmp_path, {"kind": "vllm"})
    assert problem.startswith("engine.kind: the vLLM engine needs vllm >= 0.32.0, < 0.33")
    assert told in problem


def test_options_of_one_engine_are_not_those_of_the_other(tmp_path: Path) -> None:
    assert refused(tmp_path, {"engine_args": {"enforce_eager": True}}) == [
        "engine.engine_args: they are vLLM's, but engine.kind is torch."
    ]


def test_vllm_does_not_begin_anew(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, {"kind": "vllm", "restart": True})
    assert problem.startswith("engine.restart: the embedded engine alone begins anew")


def test_another_engine_is_named_with_what_there_is(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, {"kind": "vlm"})
    assert "Allowed: torch, vllm" in problem
