"""Answers of Anthropic's `POST /v1/messages`: content blocks, whole and as events; and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator

from motet.server.adapters.adapter import EventWriter, Json, fields, objects
from motet.server.http.errors import ApiError, messages_error
from motet.server.http.sse import encode_event

REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn"}


def _usage(used: Json | None) -> Json:
    """`input_tokens` are those that were read anew."""
    if used is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached = min(used["prompt_tokens_details"]["cached_tokens"], used["prompt_tokens"])
    return {
        "input_tokens": used["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": used["completion_tokens"],
    }


def _end(choice: Json) -> Json:
    """Why the answer ended."""
    stop = choice.get("stop_reason")
    if choice["finish_reason"] == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": REASONS.get(choice["finish_reason"], "end_turn"), "stop_sequence": None}


def _head(body: Json) -> Json:
    name = str(body["id"]).partition("-")[2]
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": body["model"]}


def _blocks(message: Json) -> Iterator[Json]:
    if message.get("reasoning_content"):
        yield {"type": "thinking", "thinking": message["reasoning_content"], "signature": ""}
    calls = objects(message.get("tool_calls"))
    if message.get("content") or not calls:
        yield {"type": "text", "text": message.get("content") or ""}
    for call in calls:
        yield {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": _arguments(call)}


def _arguments(call: Json) -> Json:
    """Of a call that was cut off there is no object to give."""
    try:
        return json.loads(call["function"]["arguments"])
    except ValueError:
        return {}


class MessagesAdapter:
    def whole(self, body: Json) -> Json:
        choice = body["choices"][0]
        extension = body.get("motet", {}) | choice.get("motet", {})
        content = list(_blocks(choice["message"]))
        return {**_head(body), "content": content, **_end(choice), "usage": _usage(body["usage"]), "motet": extension}

    def events(self) -> EventWriter:
        return MessageEvents()


class MessageEvents:
    """Writes Anthropic's events: `message_start`, blocks with their deltas, `message_delta`, `message_stop`."""

    def __init__(self) -> None:
        self._begun = False
        self._kind = ""  # of the open block
        self._count = 0
        self._end: Json = {"stop_reason": "end_turn", "stop_sequence": None}
        self._usage: Json = _usage(None)
        self._extension: Json = {}
        self._failed = False

    def write(self, chunk: Json) -> Iterator[bytes]:
        return self._events(chunk)

    def fail(self, error: ApiError) -> Iterator[bytes]:
        self._failed = True
        yield encode_event("error", messages_error(error.status_code, error.detail))

    def end(self) -> Iterator[bytes]:
        if not self._failed:
            yield from self._ending()

    def _ending(self) -> Iterator[bytes]:
        """An answer without a word is an empty text."""
        if not self._count:
            yield self._begin({"type": "text", "text": ""})
        yield from self._close()
        own = {"delta": self._end, "usage": self._usage, "motet": self._extension}
        yield encode_event("message_delta", {"type": "message_delta", **own})
        yield encode_event("message_stop", {"type": "message_stop"})

    def _events(self, chunk: Json) -> Iterator[bytes]:
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        self._extension |= chunk.get("motet") or {}
        if not self._begun:
            self._begun = True
            empty: Json = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage}
            yield encode_event("message_start", {"type": "message_start", "message": _head(chunk) | empty})
        for choice in chunk["choices"]:
            yield from self._choice(choice)

    def _choice(self, choice: Json) -> Iterator[bytes]:
        delta = fields(choice["delta"])
        traced = {"motet": choice["motet"]} if "motet" in choice else {}
        if thought := delta.get("reasoning_content"):
            yield from self._into("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": thought}, traced)
        if (said := delta.get("content")) or (traced and not (thought or delta.get("tool_calls"))):
            yield from self._into("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": said or ""}, traced)
        for call in objects(delta.get("tool_calls")):
            yield from self._call(call)
        if choice.get("finish_reason"):
            self._end = _end(choice)

    def _call(self, call: Json) -> Iterator[bytes]:
        function = fields(call.get("function"))
        if call.get("id"):
            yield from self._close()
            yield self._begin({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments}, {})

    def _into(self, kind: str, block: Json) -> Iterator[bytes]:
        if self._kind != kind:
            yield from self._close()
            yield self._begin(block)

    def _begin(self, block: Json) -> bytes:
        self._kind = block["type"]
        self._count += 1
        own = {"index": self._count - 1, "content_block": block}
        return encode_event("content_block_start", {"type": "content_block_start", **own})

    def _delta(self, delta: Json, traced: Json) -> bytes:
        own = {"index": self._count - 1, "delta": delta, **traced}
        return encode_event("content_block_delta", {"type": "content_block_delta", **own})

    def _close(self) -> Iterator[bytes]:
        if self._kind:
            self._kind = ""
            yield encode_event("content_block_stop", {"type": "content_block_stop", "index": self._count - 1})
