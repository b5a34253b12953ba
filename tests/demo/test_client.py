"""The client's requests, as a server gets them through the real SDK."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from motet.demo.client import MAX_TOKENS, OpenAIClient, Reply, connect, together


class FakeServer(ThreadingHTTPServer):
    """Answers every request the same way and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast("FakeServer", self.server)
        server.paths.append(self.path)
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        message = {"role": "assistant", "content": " Ann was born in Bree."}
        choice = {"index": 0, "message": message, "text": " Bree", "finish_reason": "stop"}
        body = json.dumps({"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests need no access log."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        threading.Thread(target=fake.serve_forever, daemon=True).start()
        yield fake
        fake.shutdown()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[OpenAIClient]:
    async with connect(f"http://127.0.0.1:{server.server_port}") as sdk:
        yield OpenAIClient(sdk)


async def test_greedy_chat(client: OpenAIClient, server: FakeServer) -> None:
    assert await client.chat("large-proxy", "Where?") == Reply("Ann was born in Bree.", ended=True)
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0] == {
        "model": "large-proxy",
        "messages": [{"role": "user", "content": "Where?"}],
        "temperature": 0.0,
        "max_tokens": MAX_TOKENS,
        "seed": None,
    }


async def test_sampled_chat(client: OpenAIClient, server: FakeServer) -> None:
    await client.chat("large", "Where?", seed=7)
    assert (server.bodies[0]["temperature"], server.bodies[0]["seed"]) == (1.0, 7)


async def test_completion_stops_at_the_full_stop(client: OpenAIClient, server: FakeServer) -> None:
    assert await client.complete("large", "Ann was born in") == Reply("Bree", ended=True)
    assert server.paths == ["/v1/completions"]
    assert server.bodies[0]["stop"] == ["."]


async def test_no_proxy_is_asked_about_this_machine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy from the environment would be asked for 127.0.0.1 and refuse."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with connect(f"http://127.0.0.1:{server.server_port}") as sdk:
        assert (await OpenAIClient(sdk).chat("large", "Where?")).ended


async def test_together_keeps_the_order(client: OpenAIClient, server: FakeServer) -> None:
    await together([client.chat("large", str(k)) for k in range(40)])
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == sorted(str(k) for k in range(40))
