"""A server over the fake engine, in process and on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from motet.composers.spec import parse_composition
from motet.models.tool_formats import TOOL_FORMATS
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.serve import DrainingServer, make_server
from motet.server.service import Service
from tests.fakes import FakeEngine, byte_tokenizer, fake_member

COMPOSITIONS: dict[str, dict[str, Any]] = {
    "large-proxy": {"strategy": "proxy_tuning", "base": "large", "expert": "expert", "antiexpert": "small"},
    "one-prompt": {"strategy": "product", "members": [{"model": "large"}, {"model": "small", "weight": 0.5}]},
}


@dataclass
class World:
    """A service with its fake engine; `client` talks to it in process."""

    service: Service
    engine: FakeEngine
    client: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.post(path, json=body)

    def give_tools(self, model: str) -> None:
        """From now on the model calls tools as Hermes does, and its context holds 4,096 tokens."""
        members: Any = self.service.registry.members
        info = replace(members[model].info, max_model_len=4096)
        members[model] = replace(members[model], info=info, own_format=TOOL_FORMATS["hermes"])

    def script(self, model: str, text: str) -> None:
        """From now on the model says `text` and ends."""
        self.engine.scripts[model] = self.service.registry.members[model].tokenizer.encode(text)


def make_service(**config: Any) -> Service:
    tokenizer = byte_tokenizer()
    members = {
        "large": fake_member("large", tokenizer),
        "small": fake_member("small", tokenizer),
        "expert": fake_member("expert", tokenizer, "chat"),
        "parrot": fake_member("parrot", tokenizer, "chat"),
        "stranger": fake_member("stranger", byte_tokenizer(extra=["zz"])),
        "bare": fake_member("bare", byte_tokenizer(chat_template=None)),
    }
    compositions = {name: parse_composition(value) for name, value in COMPOSITIONS.items()}
    engine = FakeEngine({name: member.info for name, member in members.items()})
    return Service.assemble(ServerConfig.model_validate({"port": 0, **config}), engine, Registry(members, compositions))


MakeWorld = Callable[..., World]


@pytest.fixture
async def make_world() -> AsyncIterator[MakeWorld]:
    clients: list[httpx.AsyncClient] = []

    def make(**config: Any) -> World:
        service = make_service(**config)
        transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://motet"))
        assert isinstance(service.engine, FakeEngine)
        return World(service, service.engine, clients[-1])

    yield make
    for client in clients:
        await client.aclose()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()


@asynccontextmanager
async def listening(service: Service) -> AsyncGenerator[tuple[str, DrainingServer]]:
    """The service under a real uvicorn on a free port of the loopback; (base URL, server)."""
    server = make_server(service)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        await running
