"""Runs the application under uvicorn; on SIGTERM running answers are finished before the process ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import cast

import uvicorn

from motet.engines.grammar_process import GrammarUnavailable
from motet.engines.grammars import ROOM
from motet.operator.port import release
from motet.server.app import create_app
from motet.server.connections import AcceptWarnings, Connections
from motet.server.service import Service

log = logging.getLogger(__name__)
ABORT_SECONDS = 5  # for the error events of aborted answers


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT: /ready says 503, new requests get 503, running ones have `drain_seconds` and
    are aborted then. A second signal ends the server at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptWarnings())
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.started:
            super().handle_exit(sig, frame)
            return
        if self._service.admission.draining:
            self.should_exit = self.force_exit = True
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
        await self._service.engine.close()
        self.should_exit = True


def make_server(service: Service) -> DrainingServer:
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
    )


def serve(service: Service, port: socket.socket) -> None:
    """Listens on a bound socket; returns when the server has drained."""
    try:
        ROOM.processes.start()
    except GrammarUnavailable as error:
        log.warning("structured outputs will be refused (503): %s", error)
    make_server(service).run(sockets=[release(port)])
