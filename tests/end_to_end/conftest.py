"""A tiny demo family and the real server over it, in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from filelock import FileLock

from motet.demo.family import build_family
from motet.demo.recipe import TINY

START_TIMEOUT_S = 90.0


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, whichever of several test processes needs it first: it is the longest set-up of all."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # of all processes
    with FileLock(folder / "families.lock"):
        return build_family(0, folder / "families", TINY)


@contextmanager
def serving(file: Path, *flags: str) -> Generator[str]:
    """`motet serve` on a free port; yields the base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "motet.cli", "serve", str(file), "--port", str(port), *flags]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url
    finally:
        process.terminate()
        assert process.wait(30) == 0, "the server did not drain and leave cleanly"


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended before it was ready"
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the server was not ready in time")


@pytest.fixture(scope="session")
def url(family: Path) -> Generator[str]:
    with serving(family / "models.yaml", "--dtype", "float32") as base:
        yield base


@pytest.fixture(scope="session")
def questions(family: Path) -> list[dict[str, Any]]:
    """Held-out questions of the demo world with their right answers."""
    world = json.loads((family / "world.json").read_text())
    return cast("list[dict[str, Any]]", world["questions"]["held_out"])
