"""Runs the application under uvicorn; on SIGTERM running answers are finished before the process ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import cast

import psutil
import uvicorn
from fastapi import FastAPI

from motet.engines.grammar_process import GrammarUnavailable
from motet.engines.grammars import ROOM
from motet.heap import trimmed
from motet.operator.port import release
from motet.server.app import build, create_app
from motet.server.http.connections import AcceptWarnings, Connections
from motet.server.service import Service

log = logging.getLogger(__name__)
ABORT_SECONDS = 5  # for the error events of aborted answers
SWITCH_S = (
    0.0005  # the engine's thread lets the event loop in after it; Python's own 5 ms, several times, delay an answer
)


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT: /ready says 503, new requests get 503, running ones have `drain_seconds` and
    are aborted then. A second signal ends the server at once: `leave` is called with it."""

    def __init__(self, config: uvicorn.Config, service: Service, leave: Callable[[int], None]) -> None:
        super().__init__(config)
        self._service = service
        self._leave = leave
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptWarnings())
        await build(cast(FastAPI, self.config.app))
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
            return
        if self._service.admission.draining:
            self.should_exit = self.force_exit = True
            self._leave(sig)
            return
        self._service.admission.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = self._draining or asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        admission = self._service.admission
        log.info("draining %d choices", admission.taken)
        try:
            async with asyncio.timeout(self._service.config.drain_seconds):
                await admission.idle.wait()
        except TimeoutError:
            log.warning("aborting %d choices", admission.taken)
        try:
            async with asyncio.timeout(ABORT_SECONDS):
                await self._service.engine.close()
        except TimeoutError:
            log.error("the engine does not end: the process leaves it")
            self._leave(signal.SIGTERM)
        finally:
            self.should_exit = True


def end_process(number: int) -> None:
    """Ends this process and its children as the signal would have, without Python's own way out: that one would run
    into the threads of the engine, which are in the middle of a step."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    log.warning("ended by a second signal, or by an engine that did not end")
    logging.shutdown()
    os._exit(128 + number)


def _stay(_: int) -> None:
    """Whoever runs the server in a process of his own work ends it himself."""


def make_server(service: Service, leave: Callable[[int], None] = _stay) -> DrainingServer:
    config = service.config
    return DrainingServer(
        uvicorn.Config(
            create_app(service),
            host=config.host,
            port=config.port,
            http=cast("type[asyncio.Protocol]", Connections(config)),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=ABORT_SECONDS,
        ),
        service,
        leave,
    )


def serve(service: Service, port: socket.socket) -> None:
    """Listens on a bound socket; returns when the server has drained."""
    try:
        ROOM.processes.start()
    except GrammarUnavailable as error:
        log.warning("structured outputs will be refused (503): %s", error)
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()  # what was loaded stays: to look through it took the collector 0.2 s, several times per large answer
    with trimmed():
        make_server(service, end_process).run(sockets=[release(port)])
    if service.traces is not None:
        service.traces.close()


@contextmanager
def on_own_socket(service: Service) -> Generator[Path]:
    """The server in a thread of this process, on a Unix socket at the path that is given: only this user reaches it."""
    with tempfile.TemporaryDirectory(prefix="motet-") as folder, socket.socket(socket.AF_UNIX) as listening:
        path = Path(folder, "socket")
        listening.bind(str(path))
        listening.listen()  # who connects before the server is there waits
        server = make_server(service)
        thread = threading.Thread(target=server.run, args=([listening],), name="motet-server", daemon=True)
        thread.start()
        try:
            yield path
        finally:
            server.should_exit = True
            thread.join()
