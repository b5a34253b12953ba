"""`motet chat`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from motet.cli.operator import Cache, Seed, operator_file
from motet.cli.refusal import refuse

Target = Annotated[
    str, typer.Argument(help="A server's URL, or an operator's file (`demo` for the demo family) to load for this.")
]


def chat(
    target: Target = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Who answers. [default: the first composition]")] = None,
    api_key: Annotated[str | None, typer.Option(help="The server's key. [default: $OPENAI_API_KEY]")] = None,
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Talk to the models and compositions of a server, or of a file: /help says what there is."""
    is_url = target.startswith(("http://", "https://"))
    file = None if is_url else operator_file(Path(target), seed, cache)
    key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
    from openai import APIConnectionError, OpenAIError

    from motet.chat.conversation import ChatError
    from motet.evaluation.settings import RecipeError

    try:
        asyncio.run(_chat(target, file, model, key))
    except (ChatError, RecipeError) as error:
        refuse(error.problems if isinstance(error, RecipeError) else [str(error)])
    except APIConnectionError:
        refuse([f"nothing answers at {target}: start it with `motet serve FILE`, or name a file here."])
    except OpenAIError as error:
        refuse([f"{target}: {error}"])


async def _chat(target: str, file: Path | None, model: str | None, key: str) -> None:
    from rich.console import Console

    from motet.cache import default_cache
    from motet.chat.terminal import chat as run
    from motet.evaluation.backend import connect, in_process

    console, history = Console(), default_cache() / "chat_history"
    if file is not None:
        async with in_process(file, tell=lambda what: typer.echo(what, err=True)) as sdk:
            await run(sdk, model, history, console)
        return
    async with connect(target.rstrip("/").removesuffix("/v1"), key) as sdk:
        await run(sdk, model, history, console)
