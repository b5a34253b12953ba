"""Request ids on every log line and every answer; plain or JSON lines on standard error. Prompts are never logged."""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextvars import ContextVar
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
MAX_ID = 128
PROBES = frozenset({"/health", "/livez", "/ready"})
PLAIN = "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"

log = logging.getLogger("motet.access")


class WithRequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = REQUEST_ID.get()
        return True


class JsonLines(logging.Formatter):
    """One JSON object per line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": REQUEST_ID.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(level: str, *, as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(WithRequestId())
    handler.setFormatter(JsonLines() if as_json else logging.Formatter(PLAIN))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class RequestId:
    """Takes the client's X-Request-Id or makes one; logs one line per request, without its body or query."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _usable(Headers(scope=scope).get("x-request-id", "")) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        began = time.perf_counter()
        status = 0

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, with_id)
        finally:
            took = (time.perf_counter() - began) * 1000
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            log.log(level, "%s %s %d %.1f ms", scope["method"], scope["path"], status, took)


def _usable(request_id: str) -> str:
    """The id if it can stand in a header and a log line, else nothing."""
    fits = len(request_id) <= MAX_ID and request_id.isascii() and request_id.isprintable()
    return request_id if fits else ""
