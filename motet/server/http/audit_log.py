"""The audit log: one JSON object per request, who asked what and what was decided. Prompts and answers are never in it,
nor anything else that a client wrote but the request's id and names of models that there are."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motet.operator.access import Grant
from motet.server.guard import PROBES

log = logging.getLogger(__name__)
SILENCE_S = 60.0
REFUSED = frozenset({401, 403, 404, 429})


class AuditLog:
    """Appends lines to a file. Opened for each of them, so that whoever rotates logs may move it away."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def write(self, line: dict[str, Any]) -> None:
        """Raises OSError: the file cannot be written."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class Audited:
    """Writes a request's line when its answer is over."""

    def __init__(self, app: ASGIApp, audit: AuditLog) -> None:
        self.app = app
        self._log = audit
        self._missing = 0
        self._told: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            self._write(_line(scope, status))

    def _write(self, line: dict[str, Any]) -> None:
        """Requests are answered all the same; of the lines that are missing a line a minute says how many."""
        try:
            self._log.write(line)
        except OSError as error:
            self._missing += 1
            if self._told is None or time.monotonic() - self._told >= SILENCE_S:
                log.error("server.audit_log cannot be written: %s; %d lines are missing", error, self._missing)
                self._told = time.monotonic()


def _line(scope: Scope, status: int) -> dict[str, Any]:
    state: dict[str, Any] = scope["state"]
    grant: Grant | None = state.get("grant")
    now = time.time()
    sent = state.get("sent")
    asked = cast("dict[str, object]", sent).get("model") if isinstance(sent, dict) else None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
        "request_id": state.get("request_id"),
        "key": None if grant is None else grant.key,
        "policy": None if grant is None else grant.policy,
        "endpoint": _endpoint(scope),
        "model": _known_model(scope, asked),
        "decision": "refused" if status in REFUSED else "allowed",
        "closed": state.get("closed"),
        "status": status,
    }


def _known_model(scope: Scope, asked: object) -> str | None:
    """What a client sends as a model's name may be anything: only names that there are, or that its policy gives."""
    served = (scope["app"].state.service, scope["state"].get("service"))
    known = {name for service in served if service is not None for name in service.registry.names}
    return asked if isinstance(asked, str) and asked in known else None


def _endpoint(scope: Scope) -> str | None:
    """The pattern of its route, for a path may hold what a client wrote; of a request that was refused before it was
    routed, the path, if that is a route's."""
    if (route := scope.get("route")) is not None:
        return route.path
    return scope["path"] if scope["path"] in scope["app"].state.paths else None
