"""Clients that do not read, do not write, or come by the hundred, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

from motet.server import generations
from motet.server.http import connections
from motet.server.http.connections import SPARE, AcceptWarnings, room_for_connections
from motet.server.serve import DrainingServer
from motet.server.service import Service
from tests.fakes import FakeEngine
from tests.server.conftest import listening, make_service

HANG_S = 60
SMALL = 4096  # bytes that a socket buffers: the kernel takes megabytes otherwise, and nobody waits
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
LONG: dict[str, Any] = {"model": "large", "prompt": "x", "max_tokens": 200, "ignore_eos": True, "n": 20, "logprobs": 5}


@dataclass
class Link:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def ask(self, path: str, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.writer.write(head(path, len(content)) + content)

    async def rest(self) -> bytes:
        """What the server says until it closes, taken as it comes: a reset drops what was not taken."""
        said = b""
        async with asyncio.timeout(HANG_S):
            with suppress(ConnectionError):
                while part := await self.reader.read(1 << 16):
                    said += part
        return said


@dataclass
class Site:
    url: str
    server: DrainingServer
    service: Service
    engine: FakeEngine

    @property
    def open(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self) -> Link:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        where = urlsplit(self.url)
        await asyncio.get_running_loop().sock_connect(sock, (where.hostname, where.port))
        return Link(*await asyncio.open_connection(sock=sock))


@asynccontextmanager
async def site(**config: Any) -> AsyncGenerator[Site]:
    service = make_service(port=0, **config)
    assert isinstance(service.engine, FakeEngine)
    service.engine.kv_bytes_budget = 1 << 30
    async with listening(service) as (url, server):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        yield Site(url, server, service, service.engine)


def head(path: str, length: int) -> bytes:
    kind = "content-type: application/json"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n\r\n".encode()


async def until(condition: Any) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():  # noqa: ASYNC110  (the server has no event for it)
            await asyncio.sleep(0.01)


async def trickle(link: Link, text: bytes) -> None:
    """A byte at a time, faster than any pause would be noticed, until the server closes."""
    for at in range(len(text)):
        if link.writer.is_closing():
            return
        link.writer.write(text[at : at + 1])
        await asyncio.sleep(0.03)


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "second"])
@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nx: " + b"y" * 1000], ids=["silent", "slow"])
async def test_a_head_that_does_not_come(before: bytes, sent: bytes) -> None:
    async with site(header_timeout_seconds=0.3) as there:
        link = await there.connect()
        link.writer.write(before)
        sending = asyncio.create_task(trickle(link, sent))
        said = await link.rest()
        assert said.count(b"HTTP/1.1 200") == bool(before)
        sending.cancel()


async def test_a_body_that_does_not_come() -> None:
    """The client is told, and what it held is free."""
    async with site(body_timeout_seconds=0.3) as there:
        link = await there.connect()
        link.writer.write(head("/v1/completions", 10_000))
        sending = asyncio.create_task(trickle(link, b" " * 1000))
        answer, _, body = (await link.rest()).partition(b"\r\n\r\n")
        sending.cancel()
        assert answer.startswith(b"HTTP/1.1 408")
        assert json.loads(body)["error"]["code"] == "body_timeout"
        await until(lambda: not there.open)


@pytest.mark.parametrize(("size", "status"), [(1, b"400"), (200, b"200")])
async def test_a_body_in_tiny_chunks(size: int, status: bytes) -> None:
    """Thousands of chunks of a byte cost a hundred times what the bytes do; as many of usual ones are read."""
    chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
    kind = b"content-type: application/json\r\nconnection: close"
    async with site() as there:
        link = await there.connect()
        link.writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n%s\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        )
        link.writer.write(chunk * 3000)
        text = json.dumps({"model": "large", "prompt": "x", "max_tokens": 1}).encode()
        link.writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text))
        assert (await link.rest()).startswith(b"HTTP/1.1 " + status)
        await until(lambda: not there.open)


async def test_a_body_in_few_tiny_chunks() -> None:
    """Each body is counted for itself, over one connection as well."""
    text = json.dumps({"model": "large", "prompt": "x", "max_tokens": 1})
    body = b"".join(b"1\r\n%s\r\n" % sign.encode() for sign in " " * (700 - len(text)) + text) + b"0\r\n\r\n"
    form = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n%s: %s\r\n\r\n"
    coming = (b"transfer-encoding", b"chunked")
    async with site() as there:
        link = await there.connect()
        link.writer.write((form % coming + body) * 2 + form % (coming[0], b"chunked\r\nconnection: close") + body)
        assert (await link.rest()).count(b"HTTP/1.1 200") == 3


async def test_texts_to_tokenize_wait_behind_their_own_kind() -> None:
    """Nobody else waits for them, and those whose clients have left are never begun."""
    began, gate = list[str](), threading.Event()

    def waiting(text: str, **_: Any) -> list[int]:
        began.append(text)
        if text.startswith("slow"):
            gate.wait(HANG_S)
        return [1]

    async with site() as there:
        there.service.registry.members["large"].tokenizer.__dict__["encode"] = waiting
        links = [await there.connect() for _ in range(5)]
        for number, link in enumerate(links):
            link.ask("/tokenize", {"model": "large", "prompt": f"slow {number}"})
            await until(lambda: began)
        other = await there.connect()
        other.ask("/v1/completions", {"model": "large", "prompt": "x", "max_tokens": 1})
        answer = await other.reader.readuntil(b"\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        for link in links:
            link.writer.close()
        await until(lambda: there.open == 1)
        gate.set()
        last = await there.connect()
        last.ask("/tokenize", {"model": "large", "prompt": "last"})
        assert (await last.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    assert [text for text in began if text.startswith("slow") or text == "last"] == ["slow 0", "last"]


async def test_a_slow_answer_is_no_slow_body() -> None:
    async with site(body_timeout_seconds=0.1, header_timeout_seconds=0.1, write_timeout_seconds=0.1) as there:
        there.engine.gate.clear()
        link = await there.connect()
        link.ask("/v1/completions", {"model": "large", "prompt": "x", "max_tokens": 1})
        await asyncio.sleep(0.5)
        there.engine.gate.set()
        assert (await link.rest()).startswith(b"HTTP/1.1 200")


async def test_a_rejected_body_that_goes_on() -> None:
    """What is sent behind an answer keeps no connection open."""
    async with site(header_timeout_seconds=0.3, api_keys=["k"]) as there:
        link = await there.connect()
        link.writer.write(head("/v1/completions", 10_000))
        sending = asyncio.create_task(trickle(link, b" " * 1000))
        assert (await link.rest()).startswith(b"HTTP/1.1 401")
        sending.cancel()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_a_client_that_does_not_read(stream: bool) -> None:
    async with site(write_timeout_seconds=0.3) as there:
        link = await there.connect()
        link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        link.ask("/v1/completions", {**LONG, "stream": stream})
        await until(lambda: there.engine.requests)
        await until(lambda: not there.open)
        await until(lambda: there.service.admission.taken == 0)
        await until(lambda: not there.engine.open)
        link.writer.transport.abort()


async def test_what_nobody_reads_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the write timeout, which frees the place: nothing is computed any more, nothing kept."""
    monkeypatch.setattr(generations, "MAX_UNREAD", 500)
    monkeypatch.setattr(generations, "STALLED_S", 0.1)
    async with site(write_timeout_seconds=60) as there:
        there.engine.step_seconds = 0.002
        link = await there.connect()
        link.writer.transport.pause_reading()  # type: ignore[attr-defined]
        link.ask("/v1/completions", {**LONG, "stream": True})
        await until(lambda: there.engine.requests)
        await until(lambda: not there.engine.open)
        assert there.service.admission.taken == LONG["n"]
        link.writer.transport.resume_reading()  # type: ignore[attr-defined]
        events = (await read_until(link, b"[DONE]")).split(b"data: ")
        assert b"client_too_slow" in events[-2]
        assert len(events) < LONG["n"] * LONG["max_tokens"]


async def read_until(link: Link, end: bytes) -> bytes:
    got = b""
    async with asyncio.timeout(HANG_S):
        while end not in got:
            got += await link.reader.read(1 << 16)
    return got


async def test_a_client_that_reads_slowly_gets_all() -> None:
    """Longer in all than the timeout, but never without reading for so long."""
    async with site(write_timeout_seconds=1.5) as there:
        link = await there.connect()
        link.ask("/v1/completions", {**LONG, "n": 40})
        began, got = asyncio.get_running_loop().time(), b""
        async with asyncio.timeout(HANG_S):
            answer = await link.reader.readuntil(b"\r\n\r\n")
            length = int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0])
            while len(got) < length:
                got += await link.reader.read(length // 50)
                await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - began > 1.5
        assert len(json.loads(got)["choices"]) == 40


async def test_more_connections_than_allowed() -> None:
    async with site(max_connections=2) as there:
        idle = [await there.connect() for _ in range(2)]
        await until(lambda: there.open == 2)
        probe, other = await there.connect(), await there.connect()
        probe.writer.write(HEALTH)
        assert (await probe.reader.readline()).startswith(b"HTTP/1.1 200")
        other.ask("/v1/completions", {"model": "large", "prompt": "x"})
        answer, _, body = (await other.rest()).partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in answer + b"\r\n"
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        for link in [*idle, probe]:
            link.writer.close()
        await until(lambda: not there.open)
        again = await there.connect()
        again.ask("/v1/completions", {"model": "large", "prompt": "x", "max_tokens": 1})
        assert (await again.reader.readline()).startswith(b"HTTP/1.1 200")


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """For new ones: the longest idle goes, and no request that is computed."""
    monkeypatch.setattr(connections, "IDLE_S", 0.2)
    async with site(max_connections=3, header_timeout_seconds=20) as there:
        there.engine.gate.clear()
        busy = await there.connect()
        busy.ask("/v1/completions", {"model": "large", "prompt": "x", "max_tokens": 1})
        await until(lambda: there.engine.requests)
        idle = [await there.connect() for _ in range(4)]  # two of them beyond the limit
        await until(lambda: there.open == 5)
        await asyncio.sleep(2.5)  # two looks at all connections
        fresh = await there.connect()
        fresh.writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await fresh.reader.readline()).startswith(b"HTTP/1.1 200")
        assert await idle[0].rest() == b""
        assert there.open == 3
        there.engine.gate.set()
        assert (await busy.reader.readline()).startswith(b"HTTP/1.1 200")


async def test_far_more_connections_than_allowed(caplog: pytest.LogCaptureFixture) -> None:
    """Refused one by one, reported all together."""
    caplog.set_level(logging.WARNING)
    async with site(max_connections=1, header_timeout_seconds=1) as there:
        links = [await there.connect() for _ in range(1 + SPARE + 20)]
        refused = [link for link in links[1 + SPARE :] if await link.rest() == b""]
        assert len(refused) == 20
        assert there.open == 1 + SPARE
        await until(lambda: caplog.records)
    assert [record.getMessage() for record in caplog.records if "refused" in record.message] == [
        f"refused 20 connections: {1 + SPARE} are open"
    ]


@pytest.mark.parametrize(("soft", "hard"), [(200, 200), (100, 200)])
def test_connections_leave_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
    """The process raises its own limit as far as it may; what is open already is not counted twice."""
    resource = pytest.importorskip("resource")
    limits = [(soft, hard)]

    def get(kind: int) -> tuple[int, int]:
        return limits[-1]

    def put(kind: int, limit: tuple[int, int]) -> None:
        limits.append(limit)

    monkeypatch.setattr(resource, "getrlimit", get)
    monkeypatch.setattr(resource, "setrlimit", put)
    monkeypatch.setattr(connections, "_open_descriptors", lambda: 40)
    assert room_for_connections() == 200 - 40 - connections.RESERVED - SPARE
    assert limits[-1] == (200, 200)


async def test_refused_accepts_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    handler = AcceptWarnings()
    for _ in range(100):
        handler(loop, {"message": AcceptWarnings.ACCEPT, "exception": OSError(24, "Too many open files")})
    handler(loop, {"message": "another"})
    assert [record.getMessage() for record in caplog.records] == [
        "connections cannot be accepted: [Errno 24] Too many open files",
        "another",
    ]


@pytest.mark.parametrize(
    "sent",
    [
        b"NO HTTP AT ALL\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_answered_as_every_error(sent: bytes) -> None:
    async with site() as here:
        link = await here.connect()
        link.writer.write(sent)
        said = await link.rest()
        assert said.startswith(b"HTTP/1.1 400 ")
        error = json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "malformed_http")
        assert here.service.admission.taken == 0


async def test_a_head_has_an_end() -> None:
    """httptools, where it is installed, collects a header for as long as it comes."""
    async with site() as there:
        link = await there.connect()
        link.writer.write(b"GET /health HTTP/1.1\r\nx: " + b"x" * 200_000)
        assert b"400 Bad Request" in await link.rest()
