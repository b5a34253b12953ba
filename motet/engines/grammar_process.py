"""Grammars compile in a process of their own first, so that one that crashes, grows or takes for ever ends that process
alone. What compiled there, within its limits, is compiled again where it is followed."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from motet.engines import grammar_worker
from motet.engines.grammar_limits import GrammarError
from motet.engines.grammar_worker import COMPILE_SECONDS, READY, too_large

PACKAGE = Path(__file__).parents[2]  # where `motet` is imported from
PROCESSES = 2  # grammars that compile side by side
WALL_SECONDS = 30.0  # for one grammar, however busy the machine is
START_SECONDS = 60.0
TOO_LONG = f"the grammar takes more than {COMPILE_SECONDS:g} s to compile; make it smaller"
REASONS: dict[int, str] = {
    signal.SIGPROF: TOO_LONG,
    signal.SIGKILL: TOO_LONG,
    signal.SIGABRT: too_large(),
    signal.SIGSEGV: "the grammar's definitions lead too deep into each other to be compiled",
    signal.SIGBUS: "the grammar's definitions lead too deep into each other to be compiled",
}


class GrammarUnavailable(Exception):
    """No process can compile now: none starts, or all are busy. The grammar may be a good one."""


@dataclass(frozen=True)
class TokenizerText:
    """A tokenizer as it travels: `tokenizer.json`'s text, the number of ids, and the id that stands for all ends."""

    text: str
    size: int
    end: int


@dataclass(frozen=True)
class Checked:
    """A grammar that compiled: in Lark, and the memory that it holds."""

    lark: str
    num_bytes: int


class CompileProcess:
    """One process, started when it is first asked and again after it ended. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def check(self, number: int, tokenizer: Callable[[], TokenizerText], text: str) -> Checked:
        """Compiles `text` for the tokenizer of that number, whose own text is asked for where the process has it not.

        Raises:
            GrammarError: it does not compile, or not within the limits.
            GrammarUnavailable: the process does not start.
        """
        asked: dict[str, Any] = {"tokenizer": number, "text": text}
        answer = self._ask(asked)
        if answer.get("unknown"):
            answer = self._ask(asked | {"load": asdict(tokenizer())})
        if refused := answer.get("refused"):
            raise GrammarError(refused)
        return Checked(answer["lark"], answer["bytes"])

    def start(self) -> None:
        """Raises GrammarUnavailable."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        try:
            self._process, self._connection = _started()
            answers = self._connection.poll(START_SECONDS) and self._connection.recv_bytes() == READY
        except (OSError, EOFError) as error:
            self.stop()
            raise GrammarUnavailable(f"the process that compiles grammars does not start: {error!r}") from error
        if not answers:
            self.stop()
            raise GrammarUnavailable(f"the process that compiles grammars did not start in {START_SECONDS:g} s")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def stop(self) -> int:
        """Ends the process; its exit status."""
        if self._connection is not None:
            self._connection.close()
        process, self._process, self._connection = self._process, None, None
        if process is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            return process.wait(1)
        process.kill()
        return process.wait()

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self.start()
        assert self._connection is not None
        began = time.monotonic()
        with suppress(OSError, EOFError):  # it ended
            self._connection.send_bytes(json.dumps(asked).encode())
            if self._connection.poll(WALL_SECONDS):
                return cast(dict[str, Any], json.loads(self._connection.recv_bytes()))
        status, took = self.stop(), time.monotonic() - began
        if -status == signal.SIGKILL and took < COMPILE_SECONDS:  # not by its own limit
            raise GrammarUnavailable("the process that compiles grammars was ended from outside: try again")
        raise GrammarError(REASONS.get(-status, f"compiling the grammar ended its process (status {status})"))


class CompileProcesses:
    """Several, each for one grammar at a time."""

    def __init__(self, count: int = PROCESSES) -> None:
        self._idle: queue.LifoQueue[CompileProcess] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(CompileProcess())

    def check(self, number: int, tokenizer: Callable[[], TokenizerText], text: str) -> Checked:
        """See `CompileProcess.check`; waits for its turn."""
        process = self._idle.get()
        try:
            return process.check(number, tokenizer, text)
        finally:
            self._idle.put(process)

    def start(self) -> None:
        """Starts one, so that what keeps it from starting is known early. Raises GrammarUnavailable."""
        process = self._idle.get()
        try:
            process.start()
        finally:
            self._idle.put(process)

    def stop(self) -> None:
        """Ends those that are idle."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().stop()


def _started() -> tuple[subprocess.Popen[bytes], Connection]:
    """Without the operator's secrets, and without the terminal's Ctrl-C: it ends with its connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MOTET_")}
        path = os.pathsep.join(filter(None, (str(PACKAGE), environment.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [sys.executable, "-m", grammar_worker.__name__, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=environment | {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return process, Connection(ours.detach())
