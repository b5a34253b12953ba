"""The examples under clients/ run as they are, and say what the server answers when it is asked directly."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

CLIENTS = Path(__file__).parents[2] / "clients"
QUESTION = {"role": "user", "content": "In which town was Niatral Treidrulov born?"}
COMPOSITION: dict[str, Any] = {
    "strategy": "proxy_tuning",
    "base": {"model": "large", "prompt": ""},
    "expert": "small-chat",
    "antiexpert": {"model": "small", "prompt": ""},
}


def asked(url: str, **body: Any) -> dict[str, Any]:
    """The first choice of the examples' own request."""
    fixed: dict[str, Any] = {"messages": [QUESTION], "temperature": 0, "max_tokens": 24}
    answer = httpx.post(f"{url}/v1/chat/completions", json={**fixed, **body}, timeout=60)
    return answer.raise_for_status().json()["choices"][0]


@pytest.fixture(scope="module")
def expected(url: str) -> dict[str, Any]:
    """Line of an example's output → its value."""
    composed = asked(url, model="large", composition=COMPOSITION, logprobs=True)
    base = asked(url, model="large", logprobs=True)
    assert logprobs(composed) != pytest.approx(logprobs(base), abs=0.1), "a composition that is lost would not be seen"
    return {
        "plain": asked(url, model="small-chat")["message"]["content"],
        "composed": composed["message"]["content"],
        "streamed": composed["message"]["content"],
        "log-probs": logprobs(composed),
    }


def logprobs(choice: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def run(*command: str | Path, url: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "MOTET_URL": f"{url}/v1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def lines(output: str) -> dict[str, str]:
    """`label: value` lines; an answer may go on over several."""
    parts = re.split(r"^(plain|composed|streamed|log-probs): ?", output, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (text.removesuffix("\n") for text in parts[2::2]), strict=True))


def compare_texts(said: dict[str, str], expected: dict[str, Any]) -> None:
    names = ("plain", "composed", "streamed")
    assert {name: said[name] for name in names} == {name: expected[name] for name in names}


def compare(output: str, expected: dict[str, Any]) -> None:
    said = lines(output)
    compare_texts(said, expected)
    assert json.loads(said["log-probs"]) == pytest.approx(expected["log-probs"], abs=2e-3)


@pytest.mark.parametrize("name", ["openai_sdk.py", "langchain_chat.py", "litellm_completion.py"])
def test_python_clients(name: str, url: str, expected: dict[str, Any]) -> None:
    compare(run(sys.executable, CLIENTS / name, url=url), expected)


def test_anthropics_sdk(url: str, expected: dict[str, Any]) -> None:
    compare_texts(lines(run(sys.executable, CLIENTS / "anthropic_sdk.py", url=url)), expected)


def test_the_openai_sdk_of_node(url: str, expected: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    for name in ("package.json", "openai_sdk.mjs"):
        shutil.copy(CLIENTS / name, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install the SDK: {installed.stderr.strip().splitlines()[-1:]}")
    compare(run("node", "openai_sdk.mjs", url=url, cwd=tmp_path), expected)


def test_curl(url: str, expected: dict[str, Any]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    said = lines(run(CLIENTS / "curl.sh", url=url))
    for name in ("plain", "composed"):
        assert json.loads(said[name])["choices"][0]["message"]["content"] == expected[name]
    events = re.findall(r"^data: (\{.*\})$", said["streamed"], re.MULTILINE)
    assert "data: [DONE]" in said["streamed"]
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == expected["streamed"]
    assert logprobs(json.loads(said["log-probs"])["choices"][0]) == pytest.approx(expected["log-probs"], abs=1e-3)


def test_lm_eval(url: str, tmp_path: Path) -> None:
    """Three evaluations, each with its table."""
    folder = tmp_path / "lm_eval"
    shutil.copytree(CLIENTS / "lm_eval", folder)
    tables = re.findall(r"^\|(born\w*) *\|", run(folder / "run.sh", url=url), re.MULTILINE)
    assert tables == ["born", "born_said", "born_said_composed"]
