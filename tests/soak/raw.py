"""Connections by hand: what no well-behaved client does. All of it plain sockets, so that every byte and its moment is
ours."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

RESET = struct.pack("ii", 1, 0)  # SO_LINGER without lingering: closing sends RST
STREAM_LIMIT = 1 << 24


def post(path: str, body: Mapping[str, Any] | bytes, headers: str = "") -> bytes:
    """The bytes of a POST."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
    return head.encode() + headers.encode() + b"\r\n" + content


@dataclass(frozen=True)
class Link:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Closes as a killed process does: the other side reads an error."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.transport.abort()

    async def closed_within(self, seconds: float) -> float | None:
        """Seconds until the server closed; None if it did not. What it says before is read and dropped."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(1 << 16):
                    pass
        except TimeoutError:
            return None
        except OSError:
            pass
        return time.monotonic() - began


async def connect(url: str, receive_buffer: int = 0) -> Link:
    """`receive_buffer`: bytes that the kernel takes for a client that does not read (0: its default)."""
    where = urlsplit(url)
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
    return Link(*await asyncio.open_connection(sock=sock, limit=STREAM_LIMIT))


async def says(url: str, sent: bytes, seconds: float = 10.0) -> bytes:
    """All that the server answers to some bytes before it closes, or within some seconds."""
    link = await connect(url)
    got = b""
    try:
        link.writer.write(sent)
        async with asyncio.timeout(seconds):
            while part := await link.reader.read(1 << 16):
                got += part
    except (TimeoutError, OSError):
        pass
    finally:
        link.close()
    return got


async def until_idle(url: str, seconds: float) -> float | None:
    """Seconds until nothing runs, waits or holds keys and values; None if something still does."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while time.monotonic() - began < seconds:
            try:
                lines = (await client.get("/metrics")).text.splitlines()
            except httpx.HTTPError:
                return None
            gauges = [line for line in lines if line.startswith(("motet:num_requests_", "motet:kv_cache_usage_perc"))]
            if gauges and all(float(line.rsplit(" ", 1)[1]) == 0 for line in gauges):
                return time.monotonic() - began
            await asyncio.sleep(0.05)
    return None
