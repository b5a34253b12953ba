"""Streams as clients read them (server-sent events)."""

from __future__ import annotations

import json
from typing import Any


def chunks_of(text: str) -> list[Any]:
    """The data of a stream of chunks; [DONE] has to be the last."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def events_of(text: str) -> list[Any]:
    """The data of a stream of events, which each have the name of their type."""
    read: list[Any] = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        read.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {read[-1]['type']}"
    return read
