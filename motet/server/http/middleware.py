"""What stands around every request: its id and log line, CORS, API keys, the limit of its body.

Bodies of answers leave in pieces here, so that no client that does not read makes the server keep a whole one.
All of it is plain ASGI: Starlette's BaseHTTPMiddleware hides from the application that a client has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motet.composers.errors import MAX_SHOWN
from motet.operator.access import Access, Grant
from motet.operator.keys import digest_of
from motet.operator.settings import ServerConfig
from motet.operator.visible import NotAllowed
from motet.server.guard import ADMIN, PROBES, check_endpoint
from motet.server.http.audit_log import Audited, AuditLog
from motet.server.http.connections import CROWDED
from motet.server.http.errors import ApiError, as_api_error, busy, error_response
from motet.server.http.headers import ADDED, EXPOSED
from motet.server.http.logs import REQUEST_ID
from motet.server.http.rates import Rates

if TYPE_CHECKING:
    from motet.server.service import Service

MAX_ID = 128  # characters of a client's X-Request-Id
SMALL_BODY = 1 << 16  # bytes; whoever fills the room for bodies keeps none of these out
PIECE = 1 << 16  # bytes: what a connection's buffer holds before it makes its writer wait
DOCS_FILES = "/static-offline-docs"
PAGE_FILES = {  # of the playground, with their types
    "index.html": "text/html; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
PAGE = ("/", *(f"/playground/{name}" for name in PAGE_FILES))
DOCS = ("/docs", "/openapi.json", DOCS_FILES)

log = logging.getLogger("motet.access")


def middleware(config: ServerConfig) -> list[Middleware]:
    """Outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(config.cors_origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
    )
    return [
        Middleware(Pieces),
        Middleware(RequestId),
        *([cors] if config.cors_origins else []),
        *([Middleware(Audited, audit=AuditLog(Path(config.audit_log)))] if config.audit_log else []),
        Middleware(Crowd),
        Middleware(Auth, config=config),
        Middleware(Guard),
        Middleware(BodyLimit, config=config),
    ]


class Pieces:
    """Long bodies are sent piece by piece: after each the client has to have read some of what came before."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or len(body) <= PIECE:
                await send(message)
                return
            for begin in range(0, len(body), PIECE):
                end = begin + PIECE
                more = message.get("more_body", False) or end < len(body)
                await send({**message, "body": body[begin:end], "more_body": more})

        await self.app(scope, receive, in_pieces)


class RequestId:
    """Takes the client's X-Request-Id or makes one, adds what the request's handler put into the headers; logs one line
    per request, without its body or query."""

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
                added: dict[str, str] = scope["state"].get(ADDED, {})
                MutableHeaders(scope=message).update({"x-request-id": request_id, **added})
            await send(message)

        try:
            await self.app(scope, receive, with_id)
        finally:
            took = (time.perf_counter() - began) * 1000
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            asked = scope["method"][:MAX_SHOWN], scope["path"][:MAX_SHOWN]
            log.log(level, "%s %s %d %.1f ms", *asked, status, took)


def _usable(request_id: str) -> str:
    """The id if it can stand in a header and a log line, else nothing."""
    fits = len(request_id) <= MAX_ID and request_id.isascii() and request_id.isprintable()
    return request_id if fits else ""


class Crowd:
    """Answers 503 to all but probes over a connection beyond the limit, and closes it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["state"].get(CROWDED) and scope["path"] not in PROBES:
            await error_response(_crowded(), scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _crowded() -> ApiError:
    headers = {"retry-after": "1", "connection": "close"}
    return ApiError(503, "All connections are taken; try again.", code="too_many_connections", headers=headers)


class Auth:
    """Without keys every request passes. What a request's key may do is put into the scope's state, with the service
    as the key has it, and the key's digest, for quotas. Keys, policies and models are those of one moment, when the
    request comes: a reload while its body is on the way changes nothing of it."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self._open = (
            *PROBES,
            *(PAGE if config.playground.enabled else ()),
            *(DOCS if config.open_docs else ()),
            *(["/metrics"] if config.open_metrics else []),
        )
        self._rates = Rates(config.max_requests_per_minute_per_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            service: Service = scope["app"].state.service
            state: dict[str, Any] = scope.setdefault("state", {})
            state["service"] = service
            if not self._is_open(scope["path"]):
                refusal = self._let_in(scope, service.access)
                if refusal is not None:
                    await error_response(refusal, scope["path"])(scope, receive, send)
                    return
                state["service"] = service.under(state["grant"])
        await self.app(scope, receive, send)

    def _let_in(self, scope: Scope, access: Access) -> ApiError | None:
        state: dict[str, Any] = scope["state"]
        if not access.needs_key:
            state["grant"] = access.everybody
            return None
        key = _key(Headers(scope=scope))
        given = digest_of(key) if key else b""  # which is no key's
        grant = access.grant(given)
        refusal = self._refused(given, grant)
        if refusal is None:
            state["grant"], state["key"] = grant, given.hex()
        return refusal

    def _is_open(self, path: str) -> bool:
        return path in self._open or (path.startswith(f"{DOCS_FILES}/") and DOCS_FILES in self._open)

    def _refused(self, given: bytes, grant: Grant | None) -> ApiError | None:
        if grant is None:
            return _unknown_key()
        wait = self._rates.wait(given.hex())
        if wait:
            return busy(429, f"This key has {self._rates.limit} requests per minute.", "rate_limit_exceeded", wait)
        self._rates.spend(given.hex(), 1)
        return None


class Guard:
    """Keys under a policy reach the endpoints that it opens, and nobody the administrator's but who may."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        grant: Grant | None = scope["state"].get("grant") if scope["type"] == "http" else None
        is_bounded = grant is not None and (grant.rules is not None or scope["path"].startswith(ADMIN))
        refusal = _closed_endpoint(scope, grant) if grant is not None and is_bounded else None
        if refusal is not None:
            await error_response(refusal, scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _closed_endpoint(scope: Scope, grant: Grant) -> ApiError | None:
    """An endpoint that is not there for this key looks as one that nobody has."""
    try:
        check_endpoint(scope["method"], scope["path"], grant)
    except LookupError:
        return ApiError(404, "Not Found.")
    except NotAllowed as refusal:
        scope["state"]["closed"] = refusal.opening
        return as_api_error(refusal)
    return None


def _key(headers: Headers) -> str:
    """OpenAI's clients send `Authorization: Bearer`, Anthropic's `X-API-Key`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _unknown_key() -> ApiError:
    return ApiError(
        401, "Incorrect or missing API key.", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )


@dataclass(slots=True)
class _Body:
    """How much of one has come; `deadline` is by the loop's clock."""

    deadline: float
    read: int = 0
    whole: bool = False


class BodyLimit:
    """Refuses bodies of more than `max_body_bytes` with 413: by their declared length, else while they are read; with
    408 those that have not come whole within `body_timeout_seconds`; and with 503 those that are not small where they
    are beyond `max_bodies_bytes` together with the bodies of other requests that are not answered yet."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self.max_bytes = config.max_body_bytes
        self.max_together = config.max_bodies_bytes
        self.seconds = config.body_timeout_seconds
        self._together = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared[:19]) > self.max_bytes:
            await error_response(self._refusal(), scope["path"])(scope, receive, send)
            return
        body = _Body(asyncio.get_running_loop().time() + self.seconds)
        try:
            await self.app(scope, lambda: self._next(receive, body), send)
        finally:
            self._together -= body.read

    async def _next(self, receive: Receive, body: _Body) -> Message:
        try:  # behind the body the application waits for the client to leave
            async with asyncio.timeout_at(None if body.whole else body.deadline):
                message = await receive()
        except TimeoutError:
            raise self._late() from None
        size = len(message.get("body", b""))
        body.read += size
        self._together += size
        body.whole = not message.get("more_body", False)
        if body.read > self.max_bytes:
            raise self._refusal()
        if self._together > self.max_together and body.read > SMALL_BODY:
            raise self._too_many()
        return message

    def _refusal(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self.max_bytes} bytes.", code="body_too_large")

    def _too_many(self) -> ApiError:
        message = f"The bodies of all requests have more than {self.max_together} bytes together; try again."
        headers = {"retry-after": "1", "connection": "close"}
        return ApiError(503, message, code="too_many_bodies", headers=headers)

    def _late(self) -> ApiError:
        message = f"The body did not come whole within {self.seconds:g} seconds."
        return ApiError(408, message, code="body_timeout", headers={"connection": "close"})
