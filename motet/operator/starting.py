"""What the port answers while models load: that the process lives, and is not ready.

Standard library alone, in a thread: it is there before anything slow is imported. Probes need no long first delay so,
and clients hear when to come again instead of finding nobody.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

ALIVE = ("/health", "/livez")
RETRY_AFTER_S = 5
PATIENCE_S = 5.0  # for the head of a request and for reading the answer
MOST = 64  # connections at once: models need descriptors, too
BODIES: dict[str, object] = {
    "200 OK": {"status": "loading"},
    "503 Service Unavailable": {
        "error": {"message": "The models are being loaded.", "type": "server_error", "param": None, "code": "loading"}
    },
}
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<title>Motet playground</title>
<p>The models are being loaded. This page tries again by itself.</p>
</html>
"""


@contextmanager
def answering(port: socket.socket) -> Generator[None]:
    """Listens on a bound socket; whoever listens on it afterwards misses nobody who came meanwhile."""
    port.listen()
    # from here on nobody else can bind it; connections that are over would keep the next process from it for a minute
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    loop, over = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(port.dup(), over),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


async def _serve(listening: socket.socket, over: asyncio.Event) -> None:
    connected: dict[asyncio.StreamWriter, None] = {}  # the longest first

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(connected) >= MOST:
            oldest = next(iter(connected))
            del connected[oldest]  # it ends later: whoever comes before that has to end another one
            oldest.transport.abort()
        connected[writer] = None
        try:
            await _answer(reader, writer)
        finally:
            connected.pop(writer, None)

    async with await asyncio.start_server(answer, sock=listening) as server:
        await over.wait()
        server.close()
        for writer in list(connected):
            writer.transport.abort()
        while connected:  # noqa: ASYNC110  (each is at its end)
            await asyncio.sleep(0)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head.decode("latin-1")))
            await writer.drain()
    writer.close()


def _response(head: str) -> bytes:
    """To a request line and its fields: a browser that opens the page is told to open it again."""
    path = head.partition(" ")[2].partition(" ")[0].partition("?")[0]
    status = "200 OK" if path in ALIVE else "503 Service Unavailable"
    fields = [] if path in ALIVE else [f"retry-after: {RETRY_AFTER_S}"]
    kind, body = "application/json", json.dumps(BODIES[status])
    if path == "/" and "text/html" in head:
        fields.append(f"refresh: {RETRY_AFTER_S}")
        kind, body = "text/html; charset=utf-8", PAGE
    fields += [f"content-type: {kind}", f"content-length: {len(body)}", "connection: close"]
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "", body]).encode()
