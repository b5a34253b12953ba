"""The table of docs/clients.md: each of its cells is run here, by the real client, against the real server."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.end_to_end.clients import (
    anthropic_python,
    langchain_python,
    litellm_python,
    openai_python,
    pydantic_ai_python,
)
from tests.end_to_end.clients.asked import COMPOSITION, QUESTION, TOOL, Birth, logprobs, text

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "clients.md"
NODE = Path(__file__).parent / "clients" / "features.mjs"
FEATURES = ("chat", "composition", "stream", "log_probs", "schema", "tools", "responses", "refusals")
PYTHON: Mapping[str, tuple[str, ModuleType]] = {  # title → package, what it does
    "openai": ("openai", openai_python),
    "Anthropic": ("anthropic", anthropic_python),
    "LangChain": ("langchain-openai", langchain_python),
    "LiteLLM": ("litellm", litellm_python),
    "pydantic-ai": ("pydantic-ai-slim", pydantic_ai_python),
}
PACKAGES = json.loads((ROOT / "clients" / "package.json").read_text())["dependencies"]
NODE_FEATURES = {"openai": FEATURES, "anthropic": tuple(set(FEATURES) - {"log_probs", "responses"})}
NODE_PACKAGES = {"openai": "openai", "anthropic": "@anthropic-ai/sdk"}

Run = Callable[[str], None]
pytestmark = pytest.mark.filterwarnings("ignore:Items? '.*ReadOnly:UserWarning")  # LiteLLM's own


def in_python() -> dict[str, dict[str, Run]]:
    return {
        f"{title} {importlib.metadata.version(package)}, Python": {
            name: getattr(module, name) for name in FEATURES if hasattr(module, name)
        }
        for title, (package, module) in PYTHON.items()
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, url: str) -> Run:
    """Runs `features.mjs CLIENT FEATURE`, with the SDKs beside it."""
    if shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in (NODE, ROOT / "clients" / "package.json"):
        shutil.copy(file, folder)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if installed.returncode:
        pytest.skip(f"npm cannot install the SDKs: {installed.stderr.strip().splitlines()[-1:]}")
    said = {"small-chat": text(url, model="small-chat"), "large-proxy": text(url, model="large-proxy")}
    expected: dict[str, Any] = {
        "question": QUESTION,
        "composition": COMPOSITION,
        "tool": TOOL,
        "schema": {**Birth.model_json_schema(), "additionalProperties": False},
        "said": said,
        "logprobs": logprobs(url, model="large", composition=COMPOSITION),
    }
    return partial(run_node, folder, url, json.dumps(expected))


def run_node(folder: Path, url: str, expected: str, names: str) -> None:
    environment = {**os.environ, "MOTET_URL": url, "EXPECTED": expected}
    command = ["node", NODE.name, *names.split()]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("run", "client", "feature"),
    [(run, client, feature) for client, own in in_python().items() for feature, run in own.items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_in_python(run: Run, client: str, feature: str, url: str) -> None:
    run(url)


@pytest.mark.parametrize(
    ("client", "feature"), [(client, name) for client, own in NODE_FEATURES.items() for name in sorted(own)]
)
def test_in_node(client: str, feature: str, node: Run) -> None:
    node(f"{client} {feature}")


def test_the_page_has_the_table() -> None:
    titles = {"openai": "openai", "anthropic": "Anthropic"}
    in_node = {f"{titles[name]} {PACKAGES[NODE_PACKAGES[name]]}, Node": set(own) for name, own in NODE_FEATURES.items()}
    rows = {title: set(own) for title, own in in_python().items()} | in_node
    expected = [
        f"| {title} | {' | '.join('yes' if name in own else '–' for name in FEATURES)} |" for title, own in rows.items()
    ]
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and ", " in line.split("|")[1]]
    assert shown == expected
