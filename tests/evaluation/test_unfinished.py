"""An evaluation that is ended early: what it was answered is taken over by the next run, and by no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

import motet.evaluation.run as run_module
from motet.cli import app
from motet.evaluation.backend import connect, models_asked
from motet.evaluation.recipe import ApiSource, Recipe
from motet.evaluation.run import Progress, evaluate
from motet.evaluation.settings import RecipeError, validated
from motet.evaluation.unfinished import Answers
from tests.evaluation.conftest import FakeApi

TASKS = [
    {"type": "gap_closed", "data": "q.jsonl", "base": "a", "tuned": "b"},
    {"type": "quality", "data": "q.jsonl", "base": "a", "repeats": 1},
    {"type": "leak", "forget": "q.jsonl", "retain": "q.jsonl", "k": [1], "samples": 3, "attacks": ["plain", "ignore"]},
]
TREE: dict[str, Any] = {
    "api": {"server": "http://fake"},
    "subjects": {"a": "a", "b": "b"},
    "tasks": TASKS,
    "concurrency": 2,
}


class Server(FakeApi):
    """Refuses everything after so many answers; `listed` are its models."""

    left = 10**9
    listed: tuple[str, ...] = ("a", "b")

    async def _body(self, request: Request) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("ended")
        return await super()._body(request)

    async def models(self, request: Request) -> JSONResponse:
        rows = [{"id": name, "object": "model", "created": len(self.bodies), "owned_by": "m"} for name in self.listed]
        return JSONResponse({"object": "list", "data": rows})

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[*super().app.routes, Route("/v1/models", self.models)])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server(say=lambda model, question: f"{model} {question}", score=lambda model, question, text: [-0.5, -1.0])

    @asynccontextmanager
    async def connect(url: str, key: str) -> AsyncGenerator[AsyncOpenAI]:
        transport = httpx2.ASGITransport(found.app, raise_app_exceptions=False)
        client = DefaultAsyncHttpxClient(transport=transport)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=client, max_retries=0) as sdk:
            yield sdk

    monkeypatch.setattr(run_module, "connect", connect)
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    lines = [json.dumps({"question": f"{i}?", "answer": str(i), "value": str(i)}) for i in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines) + "\n")
    return validated(Recipe, TREE | {"output": tmp_path})


class Told(Progress):
    """What it was told."""

    def __init__(self) -> None:
        self.total = self.over = 0
        self.notes: list[str] = []

    def note(self, what: str) -> None:
        self.notes.append(what)

    def expect(self, count: int) -> None:
        assert not self.over
        self.total += count

    def done(self) -> None:
        self.over += 1


def run(recipe: Recipe, file: Path | None) -> tuple[Any, Told]:
    told = Told()
    return evaluate(recipe, recipe.output, told, unfinished=file).findings, told


TIMED = 2 * 2  # requests whose time is measured are asked again


def without_times(findings: Any) -> Any:
    for row in findings["quality"].measures.values():
        row.pop("latency multiple")
    return findings


def test_a_run_goes_on_where_an_earlier_one_ended(server: Server, recipe: Recipe, tmp_path: Path) -> None:
    whole, told = run(recipe, None)
    requests, file = len(server.bodies), tmp_path / "unfinished.jsonl"
    assert told.total == told.over == requests == 2 * (4 + 8 + 2 + 8)
    server.bodies.clear()
    server.left = 30
    with pytest.raises(RecipeError, match="refuses a request"):
        run(recipe, file)
    server.left = 10**9
    file.write_text(file.read_text() + '{"request": "half')  # as a killed process leaves it
    kept = file.read_text().count("\n") - 1
    assert 20 <= kept <= 30
    server.bodies.clear()
    again, told = run(recipe, file)
    assert told.notes == [f"{kept} answers of an earlier run that did not end are taken over from {file}"]
    assert told.total == told.over == requests
    assert len(server.bodies) <= requests - kept + TIMED
    assert without_times(again) == without_times(whole)
    server.bodies.clear()
    assert without_times(run(recipe, file)[0]) == whole
    assert len(server.bodies) == TIMED


def test_answers_of_other_models_are_not_taken_over(server: Server, recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "unfinished.jsonl"
    run(recipe, file)
    server.listed = ("a", "b", "another")
    server.say = lambda model, question: "new"
    server.bodies.clear()
    found, told = run(recipe, file)
    assert (told.notes, len(server.bodies)) == ([], told.total)
    assert {record["reply"] for record in found["gap_closed"].items} == {"new"}


def test_the_file_is_gone_once_results_are_written(server: Server, recipe: Recipe, tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(json.dumps(TREE | {"output": str(out)}))
    server.left = 20
    assert CliRunner().invoke(app, ["eval", str(file)]).exit_code == 1
    assert [path.name for path in out.iterdir()] == ["unfinished.jsonl"]
    server.left = 10**9
    done = CliRunner().invoke(app, ["eval", str(file)])
    assert "answers of an earlier run that did not end are taken over" in done.stderr
    assert {path.name for path in out.iterdir()} == {"results.json", "results.md", "items.jsonl"}


@pytest.mark.parametrize("url", ["http://localhost:9", "http://localhost:9/", "http://localhost:9/v1", "http://a/v1/"])
def test_a_server_is_named_with_or_without_v1(url: str) -> None:
    assert str(connect(url).base_url).removesuffix("/") == f"http://{url.split('/')[2]}/v1"


@pytest.mark.parametrize("text", ["", "\n", "{", "[]\n", "null\n", '{"models": 1}\n', "\xff\n"])
def test_files_that_are_none_are_begun_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "deep" / "unfinished.jsonl"
    file.parent.mkdir()
    file.write_text(text)
    assert Answers(file, ["m"]).taken_over == 0


def test_operators_files_and_weights_are_part_of_what_is_known_of_models(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text("{}")
    weights = tmp_path / "large" / "model.safetensors"
    (tmp_path / "models.yaml").write_text("models: {large: {path: large}}\n")
    sdk = AsyncOpenAI(api_key="none")

    def known() -> Any:
        return asyncio.run(models_asked(ApiSource(), tmp_path, sdk))

    weights.write_bytes(b"1")
    first = known()
    assert known() == first
    weights.write_bytes(b"12")
    second = known()
    assert second != first
    (tmp_path / "models.yaml").write_text("models: {large: {path: large, template: plain}}\n")
    assert known() != second
