"""A call that a model writes as a fenced block of JSON, though its template asks for other marks."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

from motet.models.tool_calls import KEYS, CallReader, Part, Said
from motet.models.tool_formats import TOOL_FORMATS, ToolFormat

FENCES = ("```json", "```")
BLOCK = re.compile(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", re.DOTALL)
CLOSED = "\n```"  # strings of JSON have no line breaks


class FencedCallReader:
    """Holds an answer back as long as it may be one fenced call and nothing else: an object with the name of a function
    and its arguments. An answer that says anything beside it tells of a call, and stays text.

    Args:
        form: what the template asks for; says what ids of calls look like.
        names: the functions that may be called so.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self._form = replace(TOOL_FORMATS["json"], short_ids=form.short_ids)
        self._names = names
        starts = [f'"{key}":' for key in KEYS] + [f'"name":{json.dumps(name)}' for name in names]
        self._heads = [f"{fence}{{{start}" for fence in FENCES for start in starts] if names else []
        self._held: list[str] = []
        self._begun = ""  # without spaces, until it is a head or none
        self._has_head = self._is_closed = False
        self._tail: str = ""  # in which what closes may have begun

    def push(self, text: str) -> str:
        """The text that is no such call, as soon as that is certain. Each looks at its own text alone: an answer may
        have megabytes."""
        self._held.append(text)
        return "" if self._may_be_call(text) else self._let_go()

    def flush(self) -> list[Part]:
        """The call, or the text that was held, at the end of the answer."""
        text = self._let_go()
        block = BLOCK.fullmatch(text)
        parts = self._called(block[1]) if block is not None and self._is_call(block[1]) else []
        return parts or ([Said(text)] if text else [])

    def _may_be_call(self, text: str) -> bool:
        """Spaces count for nothing here: the whole is judged at the end."""
        if not self._has_head:
            self._begun += "".join(text.split())
            self._has_head = any(map(self._begun.startswith, self._heads))
            if not self._has_head:
                return any(head.startswith(self._begun) for head in self._heads)
            text = "".join(self._held).lstrip()
        if self._is_closed:
            return not text.strip()
        text = self._tail + text
        _, closed, rest = text.partition(CLOSED)
        self._is_closed, self._tail = bool(closed), text[1 - len(CLOSED) :]
        return not rest.strip()

    def _let_go(self) -> str:
        text = "".join(self._held)
        self._held.clear()
        self._heads, self._begun, self._has_head = [], "", False
        return text

    def _is_call(self, text: str) -> bool:
        try:
            found: Any = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        fields = cast("dict[str, object]", found)
        name, arguments = fields.get("name"), [fields[key] for key in KEYS if key in fields]
        is_known = isinstance(name, str) and name in self._names
        return is_known and len(fields) == 2 and len(arguments) == 1 and isinstance(arguments[0], dict)

    def _called(self, text: str) -> list[Part]:
        """The call, its arguments as the model wrote them; nothing where two names leave it open."""
        reader = CallReader(self._form, self._names)
        parts = reader.push(text) + reader.flush()
        return [] if any(isinstance(part, Said) for part in parts) else parts


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
