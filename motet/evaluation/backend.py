"""The API that is asked: a running server, or motet's own application in this process. Both speak HTTP to the SDK."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from motet.evaluation.settings import RecipeError

TIMEOUT_S = 600.0


def connect(url: str, api_key: str = "none") -> AsyncOpenAI:
    """The SDK for a running server at `url` (without /v1), past any proxy where it is on this machine."""
    local = httpx2.URL(url).host in ("127.0.0.1", "localhost", "::1")
    client = DefaultAsyncHttpxClient(trust_env=not local)
    return AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=api_key, timeout=TIMEOUT_S, http_client=client)


@asynccontextmanager
async def in_process(
    models: Path, added: Mapping[str, Path] | None = None, tell: Callable[[str], None] = lambda what: None
) -> AsyncGenerator[AsyncOpenAI]:
    """The SDK for the application over the operator's file `models`, without a port; `added` are further model
    folders by name, asked in the form of the model that they are named after in the file, if any.

    Raises:
        RecipeError: the operator's file is wrong, or a model cannot be loaded.
    """
    from motet.operator.file import ConfigError, load
    from motet.operator.loading import load_engine
    from motet.operator.settings import ModelConfig
    from motet.server.app import create_app
    from motet.server.service import Service

    try:
        configuration = load(models)
        more = {name: ModelConfig(path=str(folder.resolve())) for name, folder in (added or {}).items()}
        settings = configuration.settings
        settings = settings.model_copy(update={"models": {**settings.models, **more}})
        engine, registry = load_engine(dataclasses.replace(configuration, settings=settings), tell)
    except ConfigError as error:
        raise RecipeError(error.problems) from error
    open_to_all = settings.server.model_copy(update={"api_keys": ()})
    transport = httpx2.ASGITransport(create_app(Service.assemble(open_to_all, engine, registry)))
    client = DefaultAsyncHttpxClient(transport=transport, trust_env=False)
    try:
        async with AsyncOpenAI(
            base_url="http://motet/v1", api_key="none", timeout=TIMEOUT_S, http_client=client
        ) as sdk:
            yield sdk
    finally:
        await engine.close()
