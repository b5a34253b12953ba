"""What an answer to messages consists of: its thought, its text, the functions that it calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from motet.models.fenced_calls import FencedCallReader
from motet.models.thoughts import ThinkTags, ThoughtReader
from motet.models.tool_calls import CallArguments, CallBegin, CallReader, Part, Said, Thought
from motet.models.tool_formats import ToolFormat


@dataclass(frozen=True)
class Syntax:
    """How an answer is taken apart. `calls` None: it has none; `tags` None: it has no thought.

    `names` are the functions that may be called (`must_call`: and nothing else be said), `fenced` those of them that a
    fenced block alone calls, too.
    `is_open`: the prompt has begun the thought. `shown` are special tokens with their texts, which are read though
    answers leave special tokens out.
    """

    calls: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    must_call: bool = False
    fenced: frozenset[str] = frozenset()
    tags: ThinkTags | None = None
    is_open: bool = False
    shown: Mapping[int, str] = field(default_factory=dict[int, str])


class PartsReader:
    """Takes one choice's text apart while it comes."""

    def __init__(self, syntax: Syntax) -> None:
        self._thought = None if syntax.tags is None else ThoughtReader(syntax.tags, is_open=syntax.is_open)
        self._calls = (
            None if syntax.calls is None else CallReader(syntax.calls, syntax.names, must_call=syntax.must_call)
        )
        self._fence = None if syntax.calls is None else FencedCallReader(syntax.calls, syntax.fenced)
        self.num_thought = 0  # tokens
        self._has_begun = False

    @property
    def has_called(self) -> bool:
        """Whether there are calls, all of them whole."""
        return self._has_begun and not (self._calls is not None and self._calls.is_open)

    def read(self, text: str, *, is_last: bool = False, is_cut: bool = False) -> list[Part]:
        """What became certain with the text of one more token. `is_cut`: it is the last because something stopped the
        answer before its own end."""
        parts: list[Part] = [Said(text)] if text else []
        if self._thought is not None:
            was_open = self._thought.in_thought
            parts = self._thought.push(text) + (self._thought.flush() if is_last else [])
            self.num_thought += was_open or self._thought.in_thought
        if self._calls is None or self._fence is None:
            return parts
        return self._called(parts, self._fence, self._calls, is_last=is_last, is_cut=is_cut)

    def _called(
        self, parts: Sequence[Part], fence: FencedCallReader, calls: CallReader, *, is_last: bool, is_cut: bool
    ) -> list[Part]:
        read: list[Part] = []
        for part in parts:
            read += calls.push(fence.push(part.text)) if isinstance(part, Said) else [part]
        if is_last:
            for part in fence.flush():
                read += calls.push(part.text) if isinstance(part, Said) else [part]
            read += calls.flush(is_cut=is_cut)
        self._has_begun = self._has_begun or any(isinstance(part, CallBegin) for part in read)
        return read


def merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbours that say the same kind of thing, together."""
    together: list[Part] = []
    for part in parts:
        last = together[-1] if together else None
        match last, part:
            case (Said(), Said()) | (Thought(), Thought()):
                together[-1] = type(part)(last.text + part.text)
            case CallArguments(index=index), CallArguments() if index == part.index:
                together[-1] = CallArguments(index, last.text + part.text)
            case _:
                together.append(part)
    return together


def delta(part: Part) -> dict[str, Any]:
    """A piece of a streamed message, as OpenAI writes it."""
    match part:
        case Said(text=text):
            return {"content": text}
        case Thought(text=text):
            return {"reasoning_content": text}
        case CallBegin(index=index, id=call, name=name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call, "type": "function", "function": function}]}
        case CallArguments(index=index, text=text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def said_of(parts: Sequence[Part], *, thinks: bool) -> dict[str, Any]:
    """What a whole message says; `content` is null where the answer is calls alone. `thinks`: it may have a thought."""
    text = "".join(part.text for part in parts if isinstance(part, Said))
    thought = "".join(part.text for part in parts if isinstance(part, Thought))
    calls = [_call(begin, parts) for begin in parts if isinstance(begin, CallBegin)]
    said: dict[str, Any] = {"content": text if text or not calls else None}
    said |= {"reasoning_content": thought or None} if thinks else {}
    return said | ({"tool_calls": calls} if calls else {})


def _call(begin: CallBegin, parts: Sequence[Part]) -> dict[str, Any]:
    pieces = (part.text for part in parts if isinstance(part, CallArguments) and part.index == begin.index)
    return {"id": begin.id, "type": "function", "function": {"name": begin.name, "arguments": "".join(pieces)}}
