"""Connections: how many there may be, and how long one may keep the server waiting.

uvicorn waits for ever for the head of a request and for a client that does not read. Its protocol stands inside of ours
here, which sees the same events and looks at all connections a few times per timeout. It is always that of h11, which
reads heads of 64 KiB at most; httptools, which uvicorn would take where it is installed, knows no end of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from motet.operator.settings import ServerConfig
from motet.server.http.errors import error_body

log = logging.getLogger(__name__)

CROWDED = "crowded"  # in the state of requests over a connection beyond the limit: they are answered 503
SPARE = 16  # connections beyond the limit that are answered so, probes among them in their usual way
RESERVED = 32  # descriptors for all but connections: files of models and caches, processes that compile grammars
MOST = 8192  # connections, where the operator says nothing
MOST_DESCRIPTORS = 65536
SWEEPS = 4  # per timeout
IDLE_S = 1.0  # without a request, after which a connection makes room for a new one
MANY_CHUNKS = 1024  # of a body,
TINY_CHUNK = 64  # and the bytes that each of more than these must have on average
LOOKED_AT = 64  # connections, for those that make room
Awaited = tuple[Literal["head", "reader"], object]  # what is waited for, and what began it


class Connections:
    """Makes the protocol of each connection, as uvicorn asks for it."""

    def __init__(self, config: ServerConfig) -> None:
        room = room_for_connections()
        if config.max_connections and config.max_connections > room:
            log.warning("server.max_connections: only %d, as the process may not open more files", room)
        self.limit = min(config.max_connections or MOST, room)
        self._patience = {"head": config.header_timeout_seconds, "reader": config.write_timeout_seconds}
        self._interval = min(1.0, *(seconds / SWEEPS for seconds in self._patience.values()))
        self._open: dict[Connection, None] = {}  # the longest open first, but for those that had to be passed over
        self._refused = 0
        self._sweeping = False

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        if len(self._open) >= self.limit:
            self._make_room()
        if len(self._open) >= self.limit + SPARE:
            self._refused += 1
            return Refused()
        state = {**app_state, CROWDED: len(self._open) >= self.limit}
        return Connection(self, H11Protocol(config, server_state, state, _loop))

    def add(self, connection: Connection) -> None:
        self._open[connection] = None
        if not self._sweeping:
            self._sweeping = True
            self._sweep_later()

    def discard(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def _make_room(self) -> None:
        """Closes connections over which nobody asks anything: else they would hold all until their time is over."""
        now = asyncio.get_running_loop().time()
        for connection in list(islice(self._open, LOOKED_AT)):
            del self._open[connection]
            if not connection.end_if_idle(now):
                self._open[connection] = None
            elif len(self._open) < self.limit:
                return

    def _sweep_later(self) -> None:
        asyncio.get_running_loop().call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        """Ends all that have waited too long; one line says how many, however many there were."""
        now = asyncio.get_running_loop().time()
        ended = Counter(kind for one in list(self._open) if (kind := one.end_if_late(now, self._patience)))
        if ended:
            said = ((ended["head"], "sent no whole head of a request"), (ended["reader"], "did not read"))
            log.info("closed connections: %s", ", ".join(f"{count} {what}" for count, what in said if count))
        if self._refused:
            log.warning("refused %d connections: %d are open", self._refused, len(self._open))
            self._refused = 0
        self._sweeping = bool(self._open)
        if self._sweeping:
            self._sweep_later()


class Chunks:
    """h11's `next_event`, which refuses bodies in so many tiny chunks that reading them is what they cost: each takes
    microseconds of the event loop, whatever is in it."""

    def __init__(self, next_event: Callable[[], Any]) -> None:
        self._next_event = next_event
        self._chunks = self._bytes = 0

    def __call__(self) -> Any:
        event = self._next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > MANY_CHUNKS and self._bytes < self._chunks * TINY_CHUNK:
                raise h11.RemoteProtocolError("The body comes in too many tiny chunks.")
        return event


class Connection(asyncio.Protocol):
    """One connection, around uvicorn's protocol for it."""

    def __init__(self, connections: Connections, inner: H11Protocol) -> None:
        self._connections = connections
        self._inner = inner
        inner.send_400_response = self._refuse  # uvicorn's own is plain text
        inner.conn.next_event = Chunks(inner.conn.next_event)
        self._resumed = 0  # how often the client has taken what filled the buffer
        self._awaited: Awaited | None = None
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(self._transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._resumed += 1
        self._inner.resume_writing()

    def _refuse(self, msg: str) -> None:
        """Answers what is no HTTP in the shape of every error, and closes."""
        cycle = cast("RequestResponseCycle | None", self._inner.cycle)
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = json.dumps(error_body(400, msg, code="malformed_http")).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self._transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._transport.close()

    def end_if_late(self, now: float, patience: dict[str, float]) -> str | None:
        """What was waited for in vain, if the connection was ended for that."""
        awaited = self._waits_for()
        if awaited is None or awaited != self._awaited:
            self._awaited, self._since = awaited, now
            return None
        kind, _ = awaited
        if now - self._since < patience[kind]:
            return None
        self._transport.abort()  # drops what was not read, and tells the application that the client has left
        return kind

    def end_if_idle(self, now: float) -> bool:
        """Whether it was ended, having waited for a request for `IDLE_S` at least."""
        awaited = self._waits_for()
        idle = awaited is not None and awaited[0] == "head" and awaited == self._awaited and now - self._since >= IDLE_S
        if idle:
            self._transport.abort()
        return idle

    def _waits_for(self) -> Awaited | None:
        """None while the server computes, or reads a body, which has a time limit of its own."""
        cycle = cast("RequestResponseCycle | None", self._inner.cycle)  # None before the first request
        if self._transport.is_closing() or self._inner.flow.write_paused:
            return "reader", self._resumed
        return ("head", cycle) if cycle is None or cycle.response_complete else None


class Refused(asyncio.Protocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def room_for_connections() -> int:
    """How many connections the descriptors that this process may open leave; raises its own limit as far as it may."""
    try:
        import resource  # not everywhere
    except ImportError:
        return MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MOST_DESCRIPTORS if hard == unlimited else min(hard, MOST_DESCRIPTORS)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    allowed = MOST_DESCRIPTORS if soft == unlimited else soft
    return max(1, allowed - _open_descriptors() - RESERVED - SPARE)


def _open_descriptors() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return 0


class AcceptWarnings:
    """An event loop's exception handler: asyncio reports every refused accept, thousands a second, with a traceback."""

    ACCEPT = "socket.accept() out of system resource"
    SILENCE_S = 60.0

    def __init__(self) -> None:
        self._last: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") != self.ACCEPT:
            loop.default_exception_handler(context)
        elif self._last is None or loop.time() - self._last >= self.SILENCE_S:
            self._last = loop.time()
            log.error("connections cannot be accepted: %s", context.get("exception"))
