"""The API that is asked: a running server, or one in this process. Both speak HTTP to the SDK."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import DEFAULT_CONNECTION_LIMITS, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from motet.evaluation.recipe import ApiSource
from motet.evaluation.settings import RecipeError

TIMEOUT_S = 600.0


def connect(url: str, api_key: str = "none") -> AsyncOpenAI:
    """The SDK for a running server at `url` (with or without /v1), past any proxy where it is on this machine."""
    local = httpx2.URL(url).host in ("127.0.0.1", "localhost", "::1")
    client = DefaultAsyncHttpxClient(trust_env=not local)
    return AsyncOpenAI(
        base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key=api_key, timeout=TIMEOUT_S, http_client=client
    )


@asynccontextmanager
async def in_process(
    models: Path, added: Mapping[str, Path] | None = None, tell: Callable[[str], None] = lambda what: None
) -> AsyncGenerator[AsyncOpenAI]:
    """The SDK for a server of the operator's file `models` in this process, without a port; `added` are further model
    folders by name, asked in the form of the model that they are named after in the file, if any.

    Raises:
        RecipeError: the operator's file is wrong, or a model cannot be loaded.
    """
    from motet.operator.file import ConfigError, load
    from motet.operator.loading import load_engine
    from motet.operator.settings import ModelConfig
    from motet.server.serve import on_own_socket
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
    try:
        with on_own_socket(Service.assemble(open_to_all, engine, registry)) as path:
            transport = httpx2.AsyncHTTPTransport(uds=str(path), limits=DEFAULT_CONNECTION_LIMITS)
            client = DefaultAsyncHttpxClient(transport=transport, trust_env=False)
            async with AsyncOpenAI(
                base_url="http://motet/v1", api_key="none", timeout=TIMEOUT_S, http_client=client
            ) as sdk:
                yield sdk
    finally:
        await engine.close()


async def models_asked(api: ApiSource, root: Path, sdk: AsyncOpenAI) -> Any:
    """What is known of the models that answer without asking them: the operator's settings and the files' sizes and
    times, or a server's address and its list of models."""
    if api.server is not None:
        try:
            listed = [model.to_dict(mode="json") async for model in await sdk.models.list()]
        except APIStatusError:  # not every server lists them
            listed = []
        return [api.server, [{name: value for name, value in model.items() if name != "created"} for model in listed]]
    from motet.operator.file import ConfigError, load
    from motet.operator.settings import source_of

    try:
        configuration = load(root / api.models)
    except ConfigError as error:
        raise RecipeError(error.problems) from error
    models = configuration.settings.models.values()
    places = [Path(source_of(model, configuration.folder)) for model in models]
    written = (root / api.models).read_text(encoding="utf-8")
    merges = {name: merge.model_dump(mode="json") for name, merge in api.merges.items()}
    return [written, merges, configuration.settings.model_dump(mode="json"), [list(_stamps(place)) for place in places]]


def _stamps(place: Path) -> Iterator[tuple[str, int, int]]:
    """(path, size, time) of a model's files; nothing of a hub id."""
    for file in sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []:
        found = file.stat()
        yield str(file), found.st_size, found.st_mtime_ns
