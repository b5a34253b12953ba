"""The server over the family, with one policy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from motet.composers.spec import parse_composition
from motet.composers.vocabulary import read_vocabulary
from motet.engines.base import Engine
from motet.operator.access import Access
from motet.operator.loaded import LoadedModel
from motet.operator.policies import PolicyConfig
from motet.operator.registry import Registry
from motet.operator.settings import ServerConfig
from motet.server.app import create_app
from motet.server.service import Service
from tests.policies.attacks import ERASER, GENTLE, GENTLER, OTHER, TARGET, WEIGHT, unlearn
from tests.policies.family import TOKENIZER, VOCAB

KEYS = ("client: client-key", "root: root-key", "other: other-key")
COMPOSITIONS: Mapping[str, dict[str, Any]] = {
    "guide-forgetful": {"base": TARGET, **unlearn(WEIGHT)},
    GENTLER: {"base": TARGET, **unlearn(GENTLE)},
    OTHER: {"strategy": "product", "members": [{"model": TARGET}]},
}
HIDDEN = (ERASER, *COMPOSITIONS)


def registry_over(engine: Engine) -> Registry:
    vocabulary = read_vocabulary(TOKENIZER.hf, VOCAB)
    members = {
        name: LoadedModel(info, TOKENIZER, vocabulary, "chat", name)
        for name, info in engine.models.items()
        if name in (TARGET, ERASER)
    }
    return Registry(members, {name: parse_composition(value) for name, value in COMPOSITIONS.items()})


def service_over(engine: Engine, policies: Mapping[str, Mapping[str, Any]], **server: Any) -> Service:
    config = ServerConfig.model_validate({"port": 0, "max_choices": 4096, "api_keys": KEYS, **server})
    access = Access.of(config, {name: PolicyConfig.model_validate(value) for name, value in policies.items()})
    return Service.assemble(config, engine, registry_over(engine), access)


@asynccontextmanager
async def client_under(engine: Engine, policy: Mapping[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of a server whose keys `client` and `other` are under the policy, `root` under none."""
    policies = {"public": {"keys": ["client", "other"], **policy}, "operator": {"keys": ["root"], "unrestricted": True}}
    app = create_app(service_over(engine, policies))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://motet", timeout=120) as client:
        yield client
