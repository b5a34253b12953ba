"""What every point's probe needs: a server that may break, attacks on it, and what counts as having held."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from tests.soak.client import HANG_S, Answer, judge, send
from tests.soak.generator import JSON_TYPE, Request
from tests.soak.health import HealthWatch
from tests.soak.process import Launch, Server, ServerEnded, command_output, start

MIB = 1 << 20
IDLE_S = 1.0  # how long health is watched before an attack, to know the machine
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a point asks for, and what was seen."""

    what: str
    held: bool
    saw: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What an attack may cost: seconds until every answer, seconds of `/health`, MiB of the process."""

    answer_s: float = HANG_S
    health_s: float = 0.2
    grew_mib: float = 150
    answer_mib: float = 200


class Lab:
    """`launch` serves the family; `scratch` is a folder of the point's own. The server starts when it is first needed
    and anew after everything that did not hold, so that one failure does not show as two."""

    def __init__(self, launch: Launch, scratch: Path) -> None:
        self.launch = launch
        self.scratch = scratch
        self._server: Server | None = None

    @property
    def family(self) -> Path:
        return self.launch.file.parent

    def server(self) -> Server:
        if self._server is None or not self._server.alive:
            self.close()
            self._server = start(self.launch)
        return self._server

    def close(self) -> None:
        if self._server is not None:
            self._server.discard()
            self._server = None

    @contextmanager
    def other(self, *flags: str, file: Path | None = None, **changes: Any) -> Generator[Server]:
        """A server of its own for one check."""
        given = replace(self.launch, file=file or self.launch.file, flags=(*self.launch.flags, *flags), **changes)
        server = start(given)
        try:
            yield server
        finally:
            server.discard()

    def attack(self, what: str, requests: Sequence[Request], limits: Limits | None = None) -> Check:
        """Sends the requests at once: all answered, well-formed and in time, others not kept waiting, memory bounded,
        the server alive."""
        limits = limits or Limits()
        server = self.server()
        before = server.resident()
        with HealthWatch(server.url) as idle:
            asyncio.run(asyncio.sleep(IDLE_S))
        sampled = len(server.samples)
        with HealthWatch(server.url) as watch:
            answers = asyncio.run(send_all(server.url, requests, limits.answer_s))
        grown = (max((one.resident for one in server.samples[sampled:]), default=before) - before) / MIB
        slow, faults = watch.longest(), _faults(requests, answers, limits)
        if not server.alive:
            faults.append(f"the server ended: {server.killed_for or server.process.poll()}")
        if slow > max(limits.health_s, 2 * idle.longest()):
            faults.append(f"/health took {slow:.2f} s")
        if grown > limits.grew_mib:
            faults.append(f"grew by {grown:.0f} MiB")
        if faults:
            self.close()
        longest = max(answer.seconds for answer in answers)
        statuses = sorted({answer.status for answer in answers})
        fine = f"{statuses} in {longest:.2f} s, /health {slow:.3f} s, + {grown:.0f} MiB"
        return Check(what, not faults, "; ".join(dict.fromkeys(faults)) or fine)

    def refused(self, what: str, *flags: str, file: Path | None = None, names: str = "", **changes: Any) -> Check:
        """`motet serve` must end by itself, with words and without a traceback."""
        given = replace(self.launch, flags=(*self.launch.flags, *flags), file=file or self.launch.file, **changes)
        try:
            server = start(given)
        except ServerEnded as ended:
            return said_well(what, str(ended), names)
        server.discard()
        return Check(what, False, "served")

    def command(self, what: str, *arguments: str, seconds: float = 30, names: str = "", **changes: Any) -> Check:
        """A command that must refuse: status 1 or 2, with words and without a traceback."""
        status, said = command_output(replace(self.launch, **changes), arguments, seconds)
        if status is None:
            return Check(what, False, f"did not end within {seconds:.0f} s")
        return (
            Check(what, False, f"status {status}: {said[-200:]}")
            if status not in (1, 2)
            else said_well(what, said, names)
        )

    def copy(self, name: str, model: str = "large") -> Path:
        """A model folder that may be changed."""
        return Path(shutil.copytree(self.family / model, self.scratch / name))

    def operator_file(self, models: Mapping[str, Path], **sections: Any) -> Path:
        file = self.scratch / f"models-{len(list(self.scratch.iterdir()))}.yaml"
        described = {name: {"path": str(path), "template": "plain"} for name, path in models.items()}
        file.write_text(json.dumps({"models": described, **sections}))  # JSON is YAML
        return file


def said_well(what: str, said: str, names: str) -> Check:
    """Whether a refusal is words: no traceback, no abort, and names what is wrong."""
    signs = ("Traceback", '\n  File "', "terminate called", "panicked")  # of a long traceback only the end is read
    faults = [sign.strip() for sign in signs if sign in said]
    if names and names.lower() not in said.lower():
        faults.append(f"does not say {names!r}")
    return Check(
        what, not faults, f"{', '.join(faults)}: {said[-300:]}" if faults else f"refused: {said.strip()[-160:]}"
    )


def _faults(requests: Sequence[Request], answers: Sequence[Answer], limits: Limits) -> list[str]:
    faults = [
        f"{finding.kind}: {finding.said[:160]}"
        for request, answer in zip(requests, answers, strict=True)
        for finding in judge(request, 0, answer)
    ]
    longest = max(len(answer.body) for answer in answers)
    return faults + ([f"an answer of {longest / MIB:.0f} MiB"] if longest > limits.answer_mib * MIB else [])


async def send_all(url: str, requests: Sequence[Request], seconds: float = HANG_S) -> list[Answer]:
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=httpx.Limits(max_connections=None)) as client:
        return list(await asyncio.gather(*(send(client, request, seconds) for request in requests)))


def ask(path: str, **body: Any) -> Request:
    return raw(path, json.dumps(body))


def raw(path: str, body: str) -> Request:
    return Request("POST", path, (JSON_TYPE,), body.encode("utf-8", "surrogatepass"))


def complete(model: str = "large", **body: Any) -> Request:
    return ask(COMPLETIONS, **{"model": model, "prompt": "The town", "max_tokens": 4, **body})


def structured(**fields: Any) -> Request:
    return complete(structured_outputs=fields)


def schema(value: Mapping[str, Any]) -> Request:
    return complete(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


Probe = Callable[[Lab], list[Check]]
