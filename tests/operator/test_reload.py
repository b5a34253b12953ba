"""The operator's file read anew: models that come and go under running requests, and what changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml

from motet.engines.base import GenerationRequest
from motet.engines.torch import TorchEngine
from motet.engines.torch.choice import ChoiceGroup
from motet.operator.access import Access
from motet.operator.file import load
from motet.operator.loading import load_engine
from motet.server.app import create_app
from motet.server.service import Service
from tests.fakes import byte_tokenizer
from tests.tiny import save_with

ROOT, CLIENT = ({"authorization": f"Bearer {key}"} for key in ("root-key", "client-key"))


@dataclass
class Running:
    file: Path
    tree: dict[str, Any]
    client: httpx.AsyncClient
    engine: TorchEngine

    def write(self, **changes: Any) -> None:
        self.tree = self.tree | changes
        self.file.write_text(yaml.safe_dump(self.tree))

    async def admin(self, what: str, model: str | None = None, status: int = 200) -> dict[str, Any]:
        body = None if model is None else {"model": model}
        answer = await self.client.post(f"/v1/admin/{what}", json=body, headers=ROOT)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found if status == 200 else found["error"]

    async def ask(self, model: str, **fields: Any) -> int:
        asked = {"model": model, "prompt": "ab", "max_tokens": 2, "ignore_eos": True} | fields
        return (await self.client.post("/v1/completions", json=asked, headers=ROOT)).status_code


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    for seed, name in enumerate(("one", "two", "three")):
        torch.manual_seed(seed)
        save_with(tmp_path / name, byte_tokenizer())
    file = tmp_path / "models.yaml"
    tree: dict[str, Any] = {
        "models": {"one": {"path": "one"}, "two": {"path": "two"}},
        "compositions": {},
        "server": {"api_keys": ["root: root-key", "client: client-key"]},
        "policies": {"operator": {"keys": ["root"], "unrestricted": True, "admin": True}},
    }
    file.write_text(yaml.safe_dump(tree))
    configuration = load(file)
    engine, registry = load_engine(configuration)
    assert isinstance(engine, TorchEngine)
    server, policies = configuration.settings.server, configuration.settings.policies
    service = Service.assemble(server, engine, registry, Access.of(server, policies), configuration)
    transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=60) as client:
        yield Running(file, tree, client, engine)
    await engine.close()


async def test_models_compositions_keys_and_policies_come_and_go(running: Running) -> None:
    assert [await running.ask(name) for name in ("one", "two", "three", "both")] == [200, 200, 404, 404]
    running.write(
        models={"one": {"path": "one"}, "three": {"path": "three"}},
        compositions={"both": {"strategy": "product", "members": ["one", "three"]}},
        policies=running.tree["policies"] | {"public": {"keys": ["client"], "models": {"x": "both"}}},
    )
    found = await running.admin("reload")
    assert (found["loaded"], found["unloaded"], found["needs_restart"]) == (["three"], ["two"], [])
    assert [await running.ask(name) for name in ("one", "two", "three", "both")] == [200, 404, 200, 200]
    seen = await running.client.get("/v1/models", headers=CLIENT)
    assert [card["id"] for card in seen.json()["data"]] == ["x"]


async def test_a_running_answer_keeps_its_model(running: Running) -> None:
    asked = asyncio.create_task(running.ask("two", max_tokens=60))
    while not running.engine.stats().running:  # noqa: ASYNC110  (no event says so)
        await asyncio.sleep(0)
    await running.admin("unload", "two")
    running.engine.detach("two", after=0.0)
    assert await running.ask("two") == 404
    assert await asked == 200
    while "two" in running.engine.models:  # noqa: ASYNC110  (the engine's thread lets it go)
        await asyncio.sleep(0.01)
    assert (await running.admin("load", "two"))["loaded"] == ["two"]
    assert await running.ask("two") == 200


async def test_what_is_leaving_can_be_kept(running: Running) -> None:
    await running.admin("unload", "two")
    assert await running.ask("two") == 404
    assert (await running.admin("reload"))["loaded"] == ["two"]
    assert await running.ask("two") == 200
    await running.admin("unload", "two")
    running.write(models={"one": {"path": "one"}, "two": {"path": "three"}})
    assert "is leaving; try again" in (await running.admin("reload", status=400))["message"]


async def test_a_wrong_file_changes_nothing(running: Running) -> None:
    running.write(models={"one": {"path": "one"}, "three": {"path": "nowhere"}})
    error = await running.admin("reload", status=400)
    assert error["code"] == "invalid_file"
    assert "models.three.path" in error["message"]
    running.write(models={"one": {"path": "one", "template": "plain"}, "two": {"path": "two"}})
    assert "models.one: it is loaded otherwise" in (await running.admin("reload", status=400))["message"]
    assert [await running.ask(name) for name in ("one", "two")] == [200, 200]


async def test_what_a_composition_needs_stays(running: Running) -> None:
    running.write(compositions={"both": {"strategy": "product", "members": ["one", "two"]}})
    await running.admin("reload")
    assert "two" in (await running.admin("unload", "two", status=400))["message"]
    assert (await running.admin("unload", "nobody", status=404))["code"] == "model_not_found"
    assert [await running.ask(name) for name in ("two", "both")] == [200, 200]


async def test_changes_at_once_do_not_undo_each_other(running: Running) -> None:
    running.write(models={name: {"path": name} for name in ("one", "two", "three")})
    await running.admin("reload")
    both = await asyncio.gather(running.admin("unload", "two"), running.admin("unload", "three"))
    assert [found["loaded"] for found in both] == [[], []]
    assert [await running.ask(name) for name in ("one", "two", "three")] == [200, 404, 404]


async def test_a_model_that_goes_under_a_request_fails_that_request_alone(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was prepared, and checked, while the model was there."""
    core = running.engine._core  # pyright: ignore[reportPrivateUsage]
    group = core.group

    def late(request: GenerationRequest) -> ChoiceGroup:
        found = group(request)
        if request.plan.streams[0].model == "two":
            running.engine.detach("two", after=0.0)
            while "two" in running.engine.models:
                time.sleep(0.01)
        return found

    monkeypatch.setattr(core, "group", late)
    bystander = asyncio.create_task(running.ask("one", max_tokens=40))
    assert await running.ask("two") == 503
    assert await bystander == 200
    assert running.engine.is_alive


async def test_what_stands_in_under_a_policy_stays(running: Running) -> None:
    """Its name is the policy's secret: without it every answer to the policy's keys would be about it."""
    policies = running.tree["policies"] | {"public": {"keys": ["client"], "models": {"x": "two"}}}
    running.write(policies=policies)
    await running.admin("reload")
    error = await running.admin("unload", "two", status=400)
    assert "policies.public.models.x: nothing is named 'two'." in error["message"]
    assert await running.ask("two") == 200
    running.write(policies=running.tree["policies"] | {"public": {"keys": ["client"], "models": {"x": "one"}}})
    await running.admin("reload")
    await running.admin("unload", "two")


async def test_what_only_a_start_reads_is_told(running: Running) -> None:
    running.write(server=running.tree["server"] | {"max_choices": 7}, engine={"max_running": 3})
    assert (await running.admin("reload"))["needs_restart"] == ["server.max_choices", "engine.max_running"]


async def test_admin_is_for_admins(running: Running) -> None:
    for headers in (CLIENT, {}):
        answer = await running.client.post("/v1/admin/reload", headers=headers)
        assert answer.status_code == (404 if headers else 401)
