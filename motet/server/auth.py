"""API keys: `Authorization: Bearer KEY`, compared in constant time; everything but the probes is guarded."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from motet.server.errors import ApiError, error_response
from motet.server.logs import PROBES


class Auth:
    """Without keys everybody is let in. A request's key, as a digest, is left in the scope's state for quotas."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in PROBES:
            given = _digest(_bearer(Headers(scope=scope)))
            if not self._known(given):
                await error_response(_refusal())(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = given.hex()
        await self.app(scope, receive, send)

    def _known(self, given: bytes) -> bool:
        """Compares with every key, so that the time says nothing about which one is near."""
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _bearer(headers: Headers) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _refusal() -> ApiError:
    return ApiError(
        401, "Incorrect or missing API key.", code="invalid_api_key", headers={"www-authenticate": "Bearer"}
    )
