"""Stages as processes, each with seconds of its own: what hangs, crashes or breaks its device's context loses itself
alone. What a process has printed before is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import IO, Any, cast

Line = dict[str, Any]
GRACE = 10.0  # seconds before a process is killed in which it takes up nothing new


class Budget:
    """Seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    @property
    def is_spent(self) -> bool:
        return self.left <= 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Attributes:
    program: a module of this package; it is given the names of a part.
    parts: run beside one another, a process each.
    """

    name: str
    program: str
    seconds: float
    parts: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Outcome:
    """Attributes:
    problems: processes that did not end by themselves, or not well.
    """

    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])


def run_stage(
    stage: Stage,
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    log: IO[str],
    take: Callable[[Line], None],
) -> Outcome:
    """Runs `command PROGRAM --seconds N NAME…` for every part.

    Args:
        seconds: after these, whatever still runs is killed.
        log: gets what the processes print that is no JSON line, and their errors.
        take: gets each JSON line as it comes; never two at once.
    """
    began, lock, outcome = time.monotonic(), Lock(), Outcome()
    arguments = [*command, stage.program, "--seconds", f"{max(1.0, seconds - GRACE):.0f}"]
    running = [
        subprocess.Popen(
            [*arguments, *part],
            stdout=subprocess.PIPE,
            stderr=log,
            env=dict(environment),
            text=True,
            start_new_session=True,
        )
        for part in stage.parts
    ]
    readers = [Thread(target=_read, args=(process, lock, log, take), daemon=True) for process in running]
    for reader in readers:
        reader.start()
    for part, process in zip(stage.parts, running, strict=True):
        problem = _ended(process, began + seconds - time.monotonic())
        if problem is not None:
            outcome.problems.append(f"{' '.join(part)}: {problem}")
    for reader in readers:
        reader.join(timeout=5)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _ended(process: subprocess.Popen[str], seconds: float) -> str | None:
    """How a process ended where it did not end well."""
    try:
        code = process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the group of its own session: it and what it has started
        process.wait()
        return "killed, its seconds were over"
    return None if code == 0 else f"ended with {code}"


def _read(process: subprocess.Popen[str], lock: Lock, log: IO[str], take: Callable[[Line], None]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        line = parsed(text)
        with lock:
            if line is None:
                log.write(text)
            else:
                take(line)


def parsed(text: str) -> Line | None:
    """A JSON object, or None: libraries print what they like."""
    try:
        line: object = json.loads(text)
    except ValueError:
        return None
    return cast("Line", line) if isinstance(line, dict) else None
