"""Sends generated requests, and judges what came back by what every answer of this server must be."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote

import httpx

from tests.soak.generator import Request

HANG_S = 10.0
MAX_ERROR_BYTES = 2048
MAX_ECHO = 200
MAX_KEPT = 20_000  # bytes of a body that a finding repeats
EVENT = b"data: "
LAST_EVENTS = (  # of chat completions, Anthropic's Messages, OpenAI's Responses
    b"data: [DONE]", b"event: message_stop", b"event: error", b"event: response.completed",
    b"event: response.incomplete", b"event: response.failed",
)  # fmt: skip
OWN_FAULTS = {"server_error", "api_error", "internal_error", "engine_error"}  # types and codes of errors


@dataclass(frozen=True)
class Answer:
    """`status` is 0 where none came; `failure` says why."""

    status: int
    seconds: float
    headers: httpx.Headers
    body: bytes = b""
    failure: str = ""


@dataclass(frozen=True)
class Finding:
    """An answer that no request may get; `said` is the server's part of it."""

    kind: str
    request: Request
    index: int
    said: str
    seconds: float = 0.0

    def line(self, seed: int) -> str:
        """One JSON line, with all that a replay needs: the body, or what to make it from where it is long."""
        body = self.request.body
        return json.dumps({
            "kind": self.kind,
            "said": self.said[:500],
            "seconds": round(self.seconds, 3),
            "seed": seed,
            "index": self.index,
            "method": self.request.method,
            "path": self.request.path,
            "headers": self.request.headers,
            "body": body[:MAX_KEPT].decode("utf-8", "backslashreplace"),
            "hex": "" if _is_utf8(body[:MAX_KEPT]) else body[:MAX_KEPT].hex(),
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        })  # fmt: skip


def _is_utf8(body: bytes) -> bool:
    return body.decode("utf-8", "replace").encode() == body


async def send(client: httpx.AsyncClient, request: Request, seconds: float = HANG_S) -> Answer:
    began = time.monotonic()
    headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers]
    try:
        async with asyncio.timeout(seconds):
            got = await client.request(request.method, request.path, headers=headers, content=request.body)
        return Answer(got.status_code, time.monotonic() - began, got.headers, got.content)
    except TimeoutError:
        return Answer(0, time.monotonic() - began, httpx.Headers(), failure="timeout")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Answer(0, time.monotonic() - began, httpx.Headers(), failure=f"{type(error).__name__}: {error}")


def judge(request: Request, index: int, answer: Answer) -> list[Finding]:
    """What is wrong with an answer; a refusal of a full server (503 with Retry-After) is none."""
    if answer.failure:
        kind = "hang" if answer.failure == "timeout" else "broken_connection"
        return [Finding(kind, request, index, answer.failure, answer.seconds)]
    said = answer.body.decode("utf-8", "replace")
    kinds = _refusal_faults(request, answer, said) if answer.status >= 400 else _success_faults(answer)
    return [Finding(kind, request, index, f"{answer.status} {said}", answer.seconds) for kind in kinds]


def is_busy(answer: Answer) -> bool:
    return answer.status in (429, 503) and "retry-after" in answer.headers


def _refusal_faults(request: Request, answer: Answer, said: str) -> list[str]:
    faults = ["5xx"] if answer.status >= 500 and not is_busy(answer) else []
    if request.method == "HEAD":
        return faults
    message = openai_message(said)
    if message is None:
        faults.append("error_shape")
    if len(answer.body) > MAX_ERROR_BYTES:
        faults.append("error_size")
    if echoes(request.body.decode("utf-8", "replace") + unquote(request.path), message or ""):
        faults.append("echo")
    return faults


def openai_message(said: str) -> str | None:
    """The message of an error in OpenAI's shape, None for anything else."""
    try:
        error: Any = json.loads(said)["error"]
        message, kind, param, code = error["message"], error["type"], error["param"], error["code"]
    except (ValueError, KeyError, TypeError):
        return None
    is_shape = isinstance(kind, str) and isinstance(param, str | None) and isinstance(code, str | None)
    return message if isinstance(message, str) and message and is_shape else None


def echoes(sent: str, message: str) -> bool:
    """Whether the message repeats more than `MAX_ECHO` characters of what was sent, in one piece."""
    ends = range(MAX_ECHO + 1, len(message) + 1, 8)
    return any(message[end - MAX_ECHO - 1 : end] in sent for end in ends)


def _success_faults(answer: Answer) -> list[str]:
    kind = answer.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        return _stream_faults(answer.body)
    if not kind.startswith("application/json") or not answer.body:
        return []
    try:
        json.loads(answer.body, parse_constant=_refuse)
    except ValueError:
        return ["not_json"]
    return []


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _stream_faults(body: bytes) -> list[str]:
    """A stream ends with [DONE] or the last event of its API, and an error inside of it is not the server's own."""
    events = body.rstrip().split(b"\n\n")
    faults = [] if events[-1].startswith(LAST_EVENTS) else ["stream_cut"]
    for event in events:
        if b'"error"' in event and EVENT in event:
            said: dict[str, Any] = json.loads(event.partition(EVENT)[2])
            response = cast("dict[str, Any]", said.get("response") or {})
            error = cast("dict[str, Any]", said.get("error") or response.get("error") or {})
            if not OWN_FAULTS.isdisjoint(map(str, error.values())):
                faults.append("stream_error")
    return faults
