"""`motet demo`: builds the family, serves it, asks it over HTTP and prints what composition does."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from motet import __version__
from motet.demo.client import OpenAIClient, connect
from motet.demo.family import build_family
from motet.demo.recipe import DEFAULT, FamilyRecipe
from motet.demo.report import print_report
from motet.demo.scoreboard import Scoreboard, measure
from motet.training.progress import for_console

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine


class ServerFailedError(Exception):
    """The server ended or was not ready in time; the message holds the end of its output."""


def run_demo(
    seed: int = 0,
    cache: Path | None = None,
    json_file: Path | None = None,
    *,
    recipe: FamilyRecipe = DEFAULT,
    limit: int = 200,
    console: Console | None = None,
) -> Scoreboard:
    """Runs the demo and prints it; at most `limit` questions per row.

    Args:
        seed: of the demo family.
        cache: where families are kept, by default `$MOTET_CACHE` or `~/.cache/motet`.
        json_file: where to write the result, with times, versions and the machine.
        recipe: what to train.
        limit: questions per row, at most.
        console: where to print, by default standard output.

    Raises:
        FamilyBuildError: training failed.
        ServerFailedError: the server did not start.
    """
    console = console or Console()
    started = time.monotonic()
    console.print(f"[bold]1. The demo family[/bold], seed {seed}", highlight=False)
    family = build_family(seed, cache, recipe, for_console(console))
    console.print(f"   {family}\n\n[bold]2. Its server[/bold]", highlight=False)
    built = time.monotonic()
    with serving(family / "models.yaml") as base_url:
        console.print(f"   {base_url}\n\n[bold]3. The same questions under each composition[/bold]", highlight=False)
        ready = time.monotonic()
        board = asyncio.run(_measure(base_url, family, limit, console))
    times = {"family": built - started, "server_start": ready - built, "scoreboard": time.monotonic() - ready}
    print_report(console, board)
    if json_file is not None:
        _write_result(json_file, board, recipe, times)
    _print_next(console, seed, board.samples[0].question)
    return board


async def _measure(base_url: str, family: Path, limit: int, console: Console) -> Scoreboard:
    async with connect(base_url) as sdk:
        with console.status("asking"):
            return await measure(OpenAIClient(sdk), family, limit, lambda what: console.print(f"   {what}"))


@contextmanager
def serving(models_file: Path) -> Generator[str]:
    """A `motet serve` process on a free local port, stopped afterwards; yields its base URL when it is ready.

    Raises:
        ServerFailedError: it ended, or was not ready within two minutes.
    """
    port = _free_port()
    base_url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "motet.cli", "serve", str(models_file), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(server, base_url, log)
            yield base_url
        finally:
            _stop(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], base_url: str, log: IO[str]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _is_ready(base_url):
        if server.poll() is not None or time.monotonic() > deadline:
            reason = "was not ready in time" if server.poll() is None else f"ended with status {server.returncode}"
            log.seek(0)
            raise ServerFailedError(f"the server {reason}:\n{log.read()[-2000:]}")
        time.sleep(0.1)


def _is_ready(base_url: str) -> bool:
    try:
        with DIRECT.open(f"{base_url}/ready", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _write_result(path: Path, board: Scoreboard, recipe: FamilyRecipe, seconds: dict[str, float]) -> None:
    result: dict[str, Any] = {
        "scoreboard": asdict(board),
        "recipe": recipe.digest,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"motet": __version__, **{name: version(name) for name in ("torch", "transformers", "openai")}},
    }
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _command() -> str:
    """What runs `motet` in the reader's shell: its name where it is on the path, else where it lies."""
    if shutil.which("motet"):
        return "motet"
    beside = Path(sys.executable).parent / "motet"  # of a virtual environment that is not activated
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def _print_next(console: Console, seed: int, question: str) -> None:
    serve = f"{_command()} serve demo" + ("" if seed == 0 else f" --seed {seed}")
    console.print(f"\nKeep it serving:\n  [bold]{serve}[/bold]\nand ask it:", highlight=False)
    console.print(
        "  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\\n"
        """    -d '{"model": "large-proxy", "temperature": 0, "messages": """
        f"""[{{"role": "user", "content": "{question}"}}]}}'""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
