"""A real `motet serve` in a process of its own, with limits: a request that breaks it cannot hurt the machine."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

GIB = 1 << 30
STOP_TIMEOUT_S = 45.0
SAMPLE_S = 0.25
GAUGES = ("motet:num_requests_running", "motet:num_requests_waiting", "motet:kv_cache_usage_perc")


class ServerEnded(Exception):
    """The server ended, or was ended, before it was ready; the message holds the end of its log."""


@dataclass(frozen=True)
class Launch:
    """How servers are started. `address_space` and `resident` are bytes (0: no limit): beyond the first, allocations
    fail; beyond the second the server is killed. `prefix` stands between `python` and `serve`. A server that is not
    ready after `start_s` has failed. `port` 0: any free one."""

    file: Path
    python: str = sys.executable
    prefix: tuple[str, ...] = ("-m", "motet.cli")
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    address_space: int = 8 * GIB
    resident: int = 3 * GIB
    descriptors: int = 0
    start_s: float = 180.0
    port: int = 0

    def command(self, *arguments: str) -> list[str]:
        return [self.python, *self.prefix, *arguments]

    def variables(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **self.environment}

    def limit(self, pid: int) -> None:
        for kind, value in ((resource.RLIMIT_AS, self.address_space), (resource.RLIMIT_NOFILE, self.descriptors)):
            if value:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, kind, (value, value))


@dataclass(frozen=True, slots=True)
class Sample:
    """The memory of the server and its children at a moment, in bytes. Resident memory counts the pages of libraries in
    every process that has touched them; anonymous memory is what the processes have asked for themselves."""

    at: float  # time.monotonic
    requests: int  # answered so far
    resident: int
    server: int  # anonymous
    children: int  # anonymous


class Server:
    """A running server. `answered` is what its clients count; memory samples carry it."""

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.url = url
        self.process = process
        self.log = log
        self.answered = 0
        self.samples: list[Sample] = []
        self.killed_for: str | None = None
        self.launch = launch
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def sample(self) -> Sample:
        """Zeros for processes that are gone."""
        try:
            own = psutil.Process(self.process.pid)
            told = [one.memory_info() for one in [own, *own.children(recursive=True)]]
        except psutil.Error:
            told = []
        anonymous = [one.rss - one.shared for one in told]
        resident = sum(one.rss for one in told)
        return Sample(time.monotonic(), self.answered, resident, sum(anonymous[:1]), sum(anonymous[1:]))

    def resident(self) -> int:
        """Bytes of the process and its children."""
        return self.sample().resident

    def descriptors(self) -> int:
        return psutil.Process(self.process.pid).num_fds() if self.alive else 0

    def log_text(self) -> str:
        return self.log.read_text("utf-8", errors="backslashreplace")

    def gauges(self) -> dict[str, float]:
        """Choices running and waiting, and the share of the KV budget in use."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(values[name]) for name in GAUGES}

    def kill(self, reason: str | None = None) -> None:
        self.killed_for = self.killed_for or reason
        with suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int | None:
        """Ends the server; its exit status, None where it had to be killed."""
        self._over.set()
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill("did not end")
            return None

    def discard(self) -> None:
        """Ends the server at once, and its log with it."""
        self._over.set()
        self.kill()
        self.log.unlink(missing_ok=True)

    def _sample(self) -> None:
        limit = self.launch.resident
        while self.alive and not self._over.wait(SAMPLE_S):
            self.samples.append(self.sample())
            if limit and self.samples[-1].resident > limit:
                self.kill(f"more than {limit / GIB:.1f} GiB of memory")


def start(launch: Launch, *, stdin: bytes = b"") -> Server:
    """
    Raises:
        ServerEnded: it ended before it was ready, or was not ready in time.
    """
    port = launch.port or free_port()
    log = Path(tempfile.mkstemp(prefix="motet-soak-", suffix=".log")[1])
    command = launch.command("serve", str(launch.file), "--port", str(port), *launch.flags)
    with log.open("wb") as out, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=out, env=launch.variables())
    launch.limit(process.pid)
    server = Server(launch, process, f"http://127.0.0.1:{port}", log)
    _wait_ready(server)
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_ready(server: Server) -> None:
    deadline = time.monotonic() + server.launch.start_s
    while server.alive and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/ready").status_code == 200:
                return
        time.sleep(0.05)
    status = server.process.poll()
    server.kill("not ready in time")
    said = server.log_text()[-2000:]
    server.discard()
    raise ServerEnded(f"ended with {status} before it was ready: {said}")


@contextmanager
def serving(launch: Launch) -> Generator[Server]:
    server = start(launch)
    try:
        yield server
    finally:
        server.stop()
        server.log.unlink(missing_ok=True)


def command_output(launch: Launch, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Exit status (None: killed after `seconds`) and output of a `motet` command that is expected to end."""
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            launch.command(*arguments), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=launch.variables()
        )
        launch.limit(process.pid)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        out.seek(0)
        return status, out.read().decode("utf-8", "backslashreplace")
