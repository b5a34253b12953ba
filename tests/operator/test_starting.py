"""What the port answers while models load."""

from __future__ import annotations

import http.client
import json
import socket
import time
from contextlib import suppress

import pytest

from motet.operator import starting
from motet.operator.file import ConfigError
from motet.operator.port import bind
from motet.operator.settings import ServerConfig
from motet.operator.starting import answering


@pytest.fixture
def port() -> socket.socket:
    return bind(ServerConfig(port=0))


def ask(port: socket.socket, path: str, method: str = "GET") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(*port.getsockname(), timeout=5)
    connection.request(method, path, headers={"authorization": "Bearer anything"})
    return connection.getresponse()


@pytest.mark.parametrize("path", ["/health", "/livez", "/livez?x=1"])
def test_the_process_lives(port: socket.socket, path: str) -> None:
    with answering(port):
        answer = ask(port, path)
        assert (answer.status, json.loads(answer.read())) == (200, {"status": "loading"})


@pytest.mark.parametrize(("method", "path"), [("GET", "/ready"), ("POST", "/v1/completions"), ("GET", "/metrics")])
def test_it_is_not_ready(port: socket.socket, method: str, path: str) -> None:
    """In the shape of every error, with a time to come again."""
    with answering(port):
        answer = ask(port, path, method)
        error = json.loads(answer.read())["error"]
    assert (answer.status, error["code"], error.keys()) == (503, "loading", {"message", "type", "param", "code"})
    assert int(answer.headers["retry-after"]) >= 1


def test_a_browser_opens_the_page_again(port: socket.socket) -> None:
    """The playground is not there yet: people read a sentence, other clients the error."""
    with answering(port):
        connection = http.client.HTTPConnection(*port.getsockname(), timeout=5)
        connection.request("GET", "/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        page = connection.getresponse()
        assert page.headers.get_content_type() == "text/html"
        assert "being loaded" in page.read().decode()
        assert (page.status, int(page.headers["refresh"])) == (503, starting.RETRY_AFTER_S)
        assert ask(port, "/").headers.get_content_type() == "application/json"


def test_silent_clients_hold_up_nobody(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PATIENCE_S", 0.3)
    with answering(port):
        silent = [socket.create_connection(port.getsockname()) for _ in range(20)]
        silent[0].sendall(b"no http\r\n\r\n")
        began = time.monotonic()
        assert ask(port, "/ready").status == 503
        assert time.monotonic() - began < 0.25
        assert b"503" in silent[0].recv(100)
        silent[1].settimeout(5)
        assert silent[1].recv(100) == b""


def test_the_socket_is_handed_over(port: socket.socket) -> None:
    """Whoever connects between loading and serving waits for the server; it is answered, not refused."""
    with answering(port):
        pass
    waiting = socket.create_connection(port.getsockname(), timeout=5)
    accepted, _ = port.accept()
    accepted.sendall(b"served")
    assert waiting.recv(10) == b"served"


def test_whoever_keeps_connections_open_leaves_descriptors(
    port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models are loaded meanwhile. The oldest make room, however many come at once, so that probes are answered."""
    monkeypatch.setattr(starting, "PATIENCE_S", 60.0)
    with answering(port):
        silent = [socket.create_connection(port.getsockname(), timeout=5) for _ in range(starting.MOST + 20)]
        assert ask(port, "/livez").status == 200
        for one in silent[:21]:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
        for one in silent[21:]:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.recv(1)
        for one in silent:
            one.close()


def test_the_next_process_finds_the_port_free(port: socket.socket) -> None:
    """Although connections of the one before are not yet forgotten; before that nobody else can take it."""
    where = ServerConfig(port=port.getsockname()[1])
    with answering(port):
        with socket.create_connection(port.getsockname(), timeout=5) as asking:
            asking.sendall(b"GET /ready HTTP/1.1\r\n\r\n")
            while asking.recv(1 << 16):  # until the other side has closed: the first to do so remembers for a minute
                pass
        with pytest.raises(ConfigError, match="in use"):
            bind(where)
    port.close()
    bind(where).close()
