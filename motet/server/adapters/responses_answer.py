"""Answers of `POST /v1/responses`: output items, whole and as events with sequence numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from motet.server.adapters.adapter import EventWriter, Json, fields, objects
from motet.server.adapters.responses_request import ResponsesRequest
from motet.server.http.errors import ApiError, error_body
from motet.server.http.sse import encode_event, event_pieces
from motet.server.http.writing import LISTS

Event = tuple[str, Json]  # its name and data


@dataclass
class Item:
    """An output item while it is written. `kind`: reasoning, message or function_call."""

    kind: str
    id: str
    name: str = ""
    call_id: str = ""
    text: str = ""
    logprobs: list[Json] = field(default_factory=list[Json])

    def shown(self, status: str) -> Json:
        head = {"id": self.id, "type": self.kind, "status": status}
        match self.kind:
            case "reasoning":
                return head | {"summary": [], "content": [self.part()] if self.text else []}
            case "message":
                return head | {"role": "assistant", "content": [self.part()] if status != "in_progress" else []}
            case _:
                return head | {"call_id": self.call_id, "name": self.name, "arguments": self.text}

    def part(self) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}


PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}


class Answer:
    """The response object while its items come."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.body = body
        self.items: list[Item] = []
        self.head: Json = {}
        self.usage: Json | None = None
        self.extension: Json = {}
        self.trace: list[Json] = []
        self.finish: str | None = None

    def begin(self, chunk: Json) -> None:
        if not self.head:
            name = str(chunk["id"]).partition("-")[2]
            self.head = {"id": f"resp_{name}", "created_at": chunk["created"], "model": chunk["model"]}

    def add(self, kind: str, name: str = "", call_id: str = "") -> Item:
        own_id = f"{PREFIXES[kind]}_{self.head['id'][5:]}{len(self.items):02}"
        self.items.append(Item(kind, own_id, name, call_id))
        return self.items[-1]

    def take(self, body: Json) -> None:
        """What stands beside a body's or chunk's choices."""
        if body.get("usage") is not None:
            self.usage = _usage(body["usage"])
        self.extension |= body.get("motet") or {}

    @property
    def status(self) -> str:
        return "incomplete" if self.finish == "length" else "completed"

    def shown(self, status: str, error: Json | None = None) -> Json:
        """The response object."""
        is_over = status != "in_progress"
        statuses = ["completed"] * len(self.items)
        if statuses and status != "completed":
            statuses[-1] = "incomplete" if is_over else "in_progress"
        return {
            **self.head,
            "object": "response",
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [item.shown(own) for item, own in zip(self.items, statuses, strict=True)],
            "usage": self.usage if is_over else None,
            **self._asked(),
            **({"motet": self.extension | ({"trace": self.trace} if self.trace else {})} if is_over else {}),
        }

    def _asked(self) -> Json:
        """The request's own settings, as far as they held."""
        body = self.body
        given: Json = body.model_dump(include={"text", "tools", "tool_choice", "reasoning"}, exclude_none=True)
        return {
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "top_logprobs": body.top_logprobs or 0,
            "text": {"format": {"type": "text"}} | given.get("text", {}),
            "tools": given.get("tools", []),
            "tool_choice": given.get("tool_choice", "auto"),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "reasoning": given.get("reasoning"),
            "metadata": (body.model_extra or {}).get("metadata") or {},
            "store": False,
            "background": False,
            "previous_response_id": None,
            "truncation": "disabled",
            "service_tier": "default",
        }


def _usage(used: Json) -> Json:
    thought = fields(used.get("completion_tokens_details"))
    return {
        "input_tokens": used["prompt_tokens"],
        "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": used["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": thought.get("reasoning_tokens", 0)},
        "total_tokens": used["total_tokens"],
    }


class ResponsesAdapter:
    def __init__(self, body: ResponsesRequest) -> None:
        self._body = body

    def whole(self, body: Json) -> Json:
        """As the events of its one chunk write it."""
        choice, writer = body["choices"][0], ResponseEvents(self._body)
        calls = [{"index": i, **call} for i, call in enumerate(objects(choice["message"].get("tool_calls")))]
        delta = {**choice["message"], "tool_calls": calls}
        return writer.result({**body, "choices": [{**choice, "delta": delta}]})

    def events(self) -> EventWriter:
        return ResponseEvents(self._body)


class ResponseEvents:
    """Writes OpenAI's events (`response.…`), numbered from 0."""

    def __init__(self, body: ResponsesRequest) -> None:
        self._answer = Answer(body)
        self._open: Item | None = None
        self._number = -1
        self._failed = False

    def write(self, chunk: Json) -> Iterator[bytes]:
        return _encoded(self._events(chunk))

    def end(self) -> Iterator[bytes]:
        return _encoded(self._ending())

    def fail(self, error: ApiError) -> Iterator[bytes]:
        return _encoded(self._failing(error))

    def result(self, chunk: Json) -> Json:
        """The response object of an answer that is over, all of which is in one chunk."""
        for events in (self._events(chunk), self._closing()):
            deque(events, maxlen=0)
        return self._answer.shown(self._answer.status)

    def _ending(self) -> Iterator[Event]:
        if not self._failed:
            yield from self._closing()
            status = self._answer.status
            yield self._event(f"response.{status}", response=self._answer.shown(status))

    def _failing(self, error: ApiError) -> Iterator[Event]:
        self._failed = True
        told = cast(Json, error_body(error.status_code, error.detail, error.param, error.code)["error"])
        if not self._answer.head:
            yield self._event("error", code=told["code"], message=told["message"], param=told["param"])
            return
        shown = {"code": "server_error" if error.status_code >= 500 else "invalid_prompt", "message": told["message"]}
        yield self._event("response.failed", response=self._answer.shown("failed", shown))

    def _event(self, name: str, /, **data: Any) -> Event:
        self._number += 1
        return name, {"type": name, "sequence_number": self._number, **data}

    def _events(self, chunk: Json) -> Iterator[Event]:
        if not self._answer.head:
            self._answer.begin(chunk)
            yield self._event("response.created", response=self._answer.shown("in_progress"))
            yield self._event("response.in_progress", response=self._answer.shown("in_progress"))
        for choice in chunk["choices"]:
            yield from self._choice(choice)
        self._answer.take(chunk)

    def _choice(self, choice: Json) -> Iterator[Event]:
        delta, logprobs = fields(choice["delta"]), objects(fields(choice.get("logprobs")).get("content"))
        if thought := delta.get("reasoning_content"):
            yield from self._text("reasoning", thought, [], choice)
        silent = (logprobs or "motet" in choice) and not (thought or delta.get("tool_calls"))  # an end's token, say
        if (said := delta.get("content")) or silent:
            yield from self._text("message", said or "", logprobs, choice)
        for call in objects(delta.get("tool_calls")):
            yield from self._call(call)
        self._answer.trace += objects(fields(choice.get("motet")).get("trace"))
        self._answer.finish = choice.get("finish_reason") or self._answer.finish

    def _text(self, kind: str, text: str, logprobs: list[Json], choice: Json) -> Iterator[Event]:
        if self._open is None or self._open.kind != kind:
            yield from self._opening(kind)
        item = cast(Item, self._open)
        item.text += text
        item.logprobs += logprobs
        own: Json = {"logprobs": logprobs} if kind == "message" else {}
        traced = {"motet": choice["motet"]} if "motet" in choice else {}
        name = "output_text" if kind == "message" else "reasoning_text"
        yield self._event(f"response.{name}.delta", **self._place(), content_index=0, delta=text, **own, **traced)

    def _call(self, call: Json) -> Iterator[Event]:
        function = fields(call.get("function"))
        if call.get("id"):
            yield from self._opening("function_call", name=function["name"], call_id=call["id"])
        if arguments := function.get("arguments"):
            cast(Item, self._open).text += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _opening(self, kind: str, **own: str) -> Iterator[Event]:
        yield from self._closing_item()
        self._open = self._answer.add(kind, **own)
        index = len(self._answer.items) - 1
        yield self._event("response.output_item.added", output_index=index, item=self._open.shown("in_progress"))
        if kind != "function_call":
            yield self._event("response.content_part.added", **self._place(), content_index=0, part=self._open.part())

    def _closing(self) -> Iterator[Event]:
        """An answer without a word is a message without one."""
        if not self._answer.items:
            yield from self._opening("message")
        yield from self._closing_item()

    def _closing_item(self) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        place = self._place()
        match item.kind:
            case "function_call":
                done = {"name": item.name, "arguments": item.text}
                yield self._event("response.function_call_arguments.done", **place, **done)
            case "message":
                own = {"text": item.text, "logprobs": item.logprobs}
                yield self._event("response.output_text.done", **place, content_index=0, **own)
                yield self._event("response.content_part.done", **place, content_index=0, part=item.part())
            case _:
                yield self._event("response.reasoning_text.done", **place, content_index=0, text=item.text)
                yield self._event("response.content_part.done", **place, content_index=0, part=item.part())
        status = "incomplete" if self._answer.finish == "length" else "completed"
        yield self._event("response.output_item.done", output_index=place["output_index"], item=item.shown(status))
        self._open = None

    def _place(self) -> Json:
        return {"item_id": cast(Item, self._open).id, "output_index": len(self._answer.items) - 1}


LISTS_AROUND = {  # log-probs; else two: output items and their content
    "response.output_text.done": 0,
    "response.content_part.done": 0,
    "response.output_item.done": 1,
}


def _encoded(events: Iterator[Event]) -> Iterator[bytes]:
    """All but the deltas may hold the whole answer with its log-probs, or the request's tools."""
    for name, data in events:
        if name.endswith(".delta"):
            yield encode_event(name, data)
        else:
            yield from event_pieces(data, name, LISTS_AROUND.get(name, LISTS))
