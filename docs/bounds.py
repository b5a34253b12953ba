"""The bounds of a number in a JSON schema, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def bounds(field: Mapping[str, Any]) -> list[str]:
    return [f"{sign} {field[key]:.10g}" for key, sign in SIGNS.items() if key in field]
