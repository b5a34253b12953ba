"""A request's JSON, counted before anything is built from it.

A list of a million empty objects is 3 MB of text and 200 MB of memory: what a body may hold is judged by its bytes, in
a few passes of C over them, and the parser (jiter) refuses nesting and digits that have no end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from motet.composers.errors import show
from motet.operator.policies import Allow
from motet.operator.visible import NotAllowed
from motet.server.guard import check_fields
from motet.server.http.errors import ApiError, as_api_error, invalid
from motet.server.http.unsupported import check_query
from motet.settings import children

MAX_VALUES = 1 << 20  # token ids above all: eight prompts of 131,072 ids
MAX_CONTAINERS = 1 << 16  # 4,096 messages of several parts, and what else a request holds, are far below
MAX_NAMES = 1 << 15  # a bias on 16,384 tokens beside 4,096 messages
MAX_TEXTS = 1 << 18  # names included; texts of a choice are bounded by the grammar's own limits
LIMITS: Mapping[str, tuple[bytes, int]] = {  # what is counted → the bytes that begin or part it, how many
    "lists and objects": (b"[{", MAX_CONTAINERS),
    "names in objects": (b":", MAX_NAMES),
    "values": (b",[{", MAX_VALUES),
}
MAX_NESTING = 200  # jiter's own; grammars have a smaller one of their own
HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
BOM = b"\xef\xbb\xbf"


class JsonRequest(Request):
    """Reads its JSON within bounds."""

    async def json(self) -> Any:
        """Raises ApiError: 400, too many values, nested too deeply, no JSON; 403, the policy of the request's key
        closes a field; 415, a compressed body."""
        if (encoding := self.headers.get("content-encoding", "identity").strip().lower()) != "identity":
            raise ApiError(
                415, f"content-encoding: {show(encoding)} is not read; send the body as it is.", code="encoded"
            )
        body = parse(await self.body())
        state: dict[str, Any] = self.scope["state"]
        state["sent"] = body
        if (allow := state["service"].allow) is not None:
            _check_fields(body, allow, state)
        return body


def _check_fields(body: Any, allow: Allow, state: dict[str, Any]) -> None:
    try:
        check_fields(body, allow)
    except NotAllowed as refusal:
        state["closed"] = refusal.opening
        raise as_api_error(refusal) from refusal


class JsonRoute(APIRoute):
    """A route whose body is a `JsonRequest`'s."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Raises ApiError (400): a field of the body in the query."""
        handler = super().get_route_handler()
        bodies = [parameter.field_info.annotation for parameter in self.dependant.body_params]
        fields = {name for body in bodies for name in getattr(body, "model_fields", ())}

        async def handle(request: Request) -> Response:
            if request.query_params:
                check_query(request.query_params, fields)
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def parse(body: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ApiError: 400, more values than `LIMITS` and `MAX_TEXTS` allow, nested too deeply, numbers of more than 4,300
            digits, no JSON.
    """
    check_counts(body)
    try:
        return from_json(body.removeprefix(BOM))
    except ValueError as error:
        raise _malformed(body, str(error)) from error


def _malformed(body: bytes, reason: str) -> ApiError:
    """jiter's reasons say what it expected and where, and repeat nothing of the text."""
    if "recursion" in reason:
        message = f"The body is nested too deeply: at most {MAX_NESTING} lists and objects."
        return invalid(message, _deepest_field(body), "too_deep")
    if ("escape" in reason or "unicode" in reason) and HALF.search(body):
        reason = f"a string holds half of a surrogate pair (\\ud800 to \\udfff), which is no character: {reason}"
    return invalid(f"The body is not JSON: {reason}.", code="malformed_json")


def _deepest_field(body: bytes) -> str | None:
    """The first field that is nested too deeply; None where Python's parser gives up, too."""
    try:
        fields: Any = json.loads(body)
    except (RecursionError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    return next((name for name, value in cast("dict[str, Any]", fields).items() if _is_deep(value)), None)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for item in level for child in children(item)]
    return bool(level)


def check_counts(body: bytes) -> None:
    """Raises ApiError (400) naming what there is too much of. Marks inside of texts are counted only where the whole
    body has few enough of them."""
    if all(_count(body, marks) <= most for marks, most in LIMITS.values()) and body.count(b'"') <= 2 * MAX_TEXTS:
        return
    outside = _outside_of_texts(body)
    for kind, (marks, most) in LIMITS.items():
        if (count := _count(outside, marks)) > most:
            raise _too_many(kind, count, most)


def _count(text: bytes, marks: bytes) -> int:
    return sum(text.count(mark) for mark in marks)


def _outside_of_texts(body: bytes) -> bytes:
    """The body without its strings: once escapes are gone, every other part between quotes lies outside of them."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if (texts := body.count(b'"') // 2) > MAX_TEXTS:
        raise _too_many("texts", texts, MAX_TEXTS)
    return b"".join(body.split(b'"')[::2])


def _too_many(kind: str, count: int, most: int) -> ApiError:
    return invalid(f"The body holds {count:,} {kind}, at most {most:,} are allowed.", None, "body_too_complex")
