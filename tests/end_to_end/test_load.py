"""The load generator against the real server: every request is answered or counted, whatever the pace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CLIENT = Path(__file__).parents[2] / "clients" / "python"
MIX = [
    {"model": "large", "composition": {"strategy": "proxy_tuning", "expert": "small-chat", "antiexpert": "small"}},
    {"model": "small-chat", "weight": 2, "label": "plain"},
]


def load(url: str, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and the last line."""
    command = [sys.executable, "-m", "motet_client.load", f"{url}/v1", "--max-tokens", "2:4", "--ignore-eos", *flags]
    done = subprocess.run(command, cwd=CLIENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("pace", [("--concurrency", "3"), ("--rate", "50")])
def test_a_mix_of_compositions(url: str, tmp_path: Path, pace: tuple[str, str]) -> None:
    mix = tmp_path / "mix.json"
    mix.write_text(json.dumps(MIX))
    status, told = load(url, "--mix", str(mix), "--requests", "12", "--warmup", "1", "--words", "4:8", *pace)
    assert (status, told["all"]["answered"], told["all"]["errors"]) == (0, 12, {})
    assert set(told["each"]) == {"large proxy_tuning", "plain"}
    assert sum(group["requests"] for group in told["each"].values()) == 12
    assert 24 <= told["all"]["output_tokens"] <= 48
    times = told["all"]
    assert 0 < times["ttft_ms"]["p50"] <= times["e2e_ms"]["p50"] <= times["e2e_ms"]["p99"] <= 1e3 * told["seconds"]


def test_prompts_of_a_file_and_refusals(url: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Niatral"}) + "\n" + json.dumps({"prompt": "a", "temperature": -1}) + "\n")
    status, told = load(url, "--model", "small", "--requests", "4", "--prompts", str(prompts))
    assert (status, told["all"]["answered"], told["all"]["errors"]) == (0, 2, {"400": 2})


def test_nothing_was_answered(url: str) -> None:
    status, told = load(url, "--model", "nobody", "--requests", "2")
    assert (status, told["all"]["errors"]) == (1, {"404": 2})
