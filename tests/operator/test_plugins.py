"""A strategy of another package: named by the operator's file, served as every other, loaded by nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from tests.operator.test_map import BASE, save

PACKAGE = Path(__file__).parents[1] / "strategy_package"
OWN = {"strategy": "interpolated", "base": "base", "other": "other", "share": 0.3}
STACK = {"base": "base", "compose": [{"strategy": "interpolated", "other": "other"}, {**OWN, "share": 0.1}]}
SERVE = """
import asyncio, json, sys
from pathlib import Path
import httpx
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service

async def main():
    engine, registry = load_engine(load(Path(sys.argv[1])))
    app = create_app(Service.assemble(ServerConfig(), engine, registry))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://motet", timeout=60) as client:
        answers = []
        for method, path, body in json.loads(sys.argv[2]):
            answer = await client.request(method, path, json=body)
            answers.append({"status": answer.status_code, "body": answer.json()})
        print(json.dumps(answers))
    await engine.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    folder = tmp_path_factory.mktemp("site")
    built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(built, check=True, cwd=PACKAGE, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(folder / "base", 1, BASE)
    save(folder / "other", 2, BASE)
    return folder


def written(models: Path, **more: Any) -> Path:
    own = {name: {"path": name, "dtype": "float32"} for name in ("base", "other")}
    file = models / "models.yaml"
    file.write_text(yaml.safe_dump({"models": own, "engine": {"kv_cache_gib": 0.05}, **more}))
    return file


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what is loaded stays loaded."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parents[2]}"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def validate(site: Path, file: Path) -> str:
    done = python(site, "-m", "motet.cli", "config", "validate", str(file))
    return " ".join((done.stdout + done.stderr).split())


def test_it_is_served(site: Path, models: Path) -> None:
    """Alone, named, in stacks, traced, described; equal to its formula in float64."""
    file = written(models, strategies=["interpolated"], compositions={"between": OWN})
    ask = {"prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0, "logprobs": 1}
    wrong = {"strategy": "interpolate", "base": "base", "other": "other"}
    asked = [
        ("POST", "/v1/completions", {**ask, "model": "between", "trace": True}),
        ("POST", "/v1/completions", {**ask, "model": "base", "composition": STACK}),
        ("POST", "/v1/completions", {**ask, "model": "base", "composition": {**OWN, "share": 2}}),
        ("POST", "/v1/completions", {**ask, "model": "base", "composition": wrong}),
        ("GET", "/v1/strategies", None),
        ("GET", "/openapi.json", None),
    ]
    done = python(site, "-c", SERVE, str(file), json.dumps(asked))
    assert done.returncode == 0, done.stderr
    named, stacked, beyond, misspelt, strategies, openapi = json.loads(done.stdout)
    for answer, share in ((named, 0.3), (stacked, 0.6)):
        assert answer["status"] == 200, answer
        best, logprob = expected(models, share)
        said = answer["body"]["choices"][0]["logprobs"]["token_logprobs"][0]
        assert said == pytest.approx(logprob, abs=1e-4)
        assert answer["body"]["choices"][0]["text"] == BASE.hf.decode([best])
    assert (beyond["status"], beyond["body"]["error"]["param"]) == (400, "composition.share")
    assert (misspelt["status"], "did you mean 'interpolated'?" in misspelt["body"]["error"]["message"]) == (400, True)
    told = {one["id"]: one for one in strategies["body"]["data"]}
    assert told["interpolated"]["formula"] == "`z = (1 − share) L_base + share L_other`"
    assert "Interpolated" in openapi["body"]["components"]["schemas"]


def expected(models: Path, share: float) -> tuple[int, float]:
    rows: list[torch.Tensor] = []
    for name in ("base", "other"):
        model = LlamaForCausalLM.from_pretrained(models / name, dtype=torch.float64)
        with torch.no_grad():
            rows.append(model(torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1))
    whole = ((1 - share) * rows[0] + share * rows[1]).log_softmax(-1)
    return int(whole.argmax()), float(whole.max())


def test_only_the_operators_file_loads_it(site: Path, models: Path) -> None:
    file = written(models)
    asked = [("POST", "/v1/completions", {"model": "base", "prompt": "a", "composition": OWN})]
    done = python(site, "-c", SERVE, str(file), json.dumps(asked))
    (answer,) = json.loads(done.stdout)
    assert (answer["status"], answer["body"]["error"]["param"]) == (400, "composition.strategy")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["interpolate"], "no installed package has a strategy 'interpolate'"),
        (["interpolate"], "Did you mean 'interpolated'?"),
        (["broken"], "strategy 'broken' cannot be loaded: ModuleNotFoundError"),
        (["proxy_tuning"], "there is a strategy 'proxy_tuning' already"),
        (["other_name"], 'its field `strategy` must be `Literal["other_name"]` with that default'),
        (["no_class"], "it is no class that derives from motet's Strategy"),
        (["abstract"], "it has no `shift`"),
    ],
)
def test_what_is_wrong_is_said(site: Path, models: Path, names: list[str], said: str) -> None:
    (points,) = site.glob("*.dist-info/entry_points.txt")
    whole = points.read_text()
    more = {
        "broken": "no_such_module:Thing",
        "proxy_tuning": "motet_interpolated:Interpolated",
        "other_name": "motet_interpolated:Interpolated",
        "no_class": "motet_interpolated:Field",
        "abstract": "motet.composers.strategies.strategy:Strategy",
    }
    try:
        points.write_text(whole + "".join(f"{name} = {value}\n" for name, value in more.items()))
        assert said in validate(site, written(models, strategies=names))
    finally:
        points.write_text(whole)


def test_a_strategy_takes_forty_lines_at_most() -> None:
    """As the documentation says."""
    assert len((PACKAGE / "motet_interpolated.py").read_text().splitlines()) < 40
