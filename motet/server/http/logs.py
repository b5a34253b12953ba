"""Log lines on standard error, plain or JSON, each with the id of its request. Prompts are never logged."""

# Standard library alone: `motet serve` sets the logs up before it imports anything slow.

from __future__ import annotations

import json
import logging
import time
from contextvars import ContextVar
from typing import Any

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
PLAIN = "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"


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
        return "".join(
            char if char.isprintable() else _json_escape(char) for char in json.dumps(line, ensure_ascii=False)
        )


def _json_escape(char: str) -> str:
    """JSON itself leaves DEL, the C1 controls and the separators of lines as they are."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else json.dumps(char)[1:-1]


class PlainLines(logging.Formatter):
    """One line per record, whatever a client has put into it: characters that end lines, move the cursor or colour the
    terminal are written as `\\x1b`; the lines of a traceback follow indented, so that none looks like a record."""

    def __init__(self) -> None:
        super().__init__(PLAIN)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _indented(lines: str) -> str:
    return "\n".join(f"    {escaped(line)}" for line in lines.split("\n"))


def escaped(text: str) -> str:
    """The text with every character that cannot be seen as Python writes it: `\\n`, `\\x1b`, `\\u2028`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def configure(level: str, *, as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(WithRequestId())
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
