"""How long `/health` takes while others are busy, asked from a process of its own: `python health.py URL SECONDS`.

Prints one line per question, the moment (time.monotonic) and the seconds it took, until its standard input ends. In
the process that makes the load, the load's own pauses would be measured.
"""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
INTERVAL_S = 0.02


class HealthWatch:
    """Watches from entering to leaving; `answers` are (moment, seconds), failed ones as `TIMEOUT_S`."""

    def __init__(self, url: str) -> None:
        self.answers: list[tuple[float, float]] = []
        self._command = [sys.executable, __file__, url, str(INTERVAL_S)]

    def __enter__(self) -> Self:
        self._asking = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._asking.stdout is not None
        self._read(self._asking.stdout.readline())  # so that what follows is watched from its beginning
        # read as it is written: a full pipe would end the watch
        self._reading = threading.Thread(target=self._read_all, args=(self._asking.stdout,), daemon=True)
        self._reading.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._asking.stdin is not None
        self._asking.stdin.close()
        self._reading.join()
        self._asking.wait()

    def _read_all(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._read(line)

    def _read(self, line: str) -> None:
        if line:
            moment, seconds = line.split()
            self.answers.append((float(moment), float(seconds)))

    def longest(self) -> float:
        """Seconds."""
        return max((seconds for _, seconds in self.answers), default=0.0)


def summary(answers: Sequence[tuple[float, float]]) -> dict[str, float]:
    taken = sorted(seconds for _, seconds in answers) or [0.0]
    return {
        "asked": len(answers),
        "p50_ms": round(1000 * taken[len(taken) // 2], 2),
        "p99_ms": round(1000 * taken[int(0.99 * (len(taken) - 1))], 2),
        "max_ms": round(1000 * taken[-1], 2),
        "unanswered": sum(seconds >= TIMEOUT_S for seconds in taken),
    }


def _ask(connection: http.client.HTTPConnection) -> float:
    began = time.monotonic()
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
        return time.monotonic() - began
    except (OSError, http.client.HTTPException):
        connection.close()
        return TIMEOUT_S


def main(url: str, interval: float) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    while True:
        moment = time.monotonic()
        print(moment, _ask(connection), flush=True)
        if select.select([sys.stdin], [], [], interval)[0]:
            return


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
