"""Integers of JSON schemas: a model that goes on with digits comes to an end, as one that goes on with spaces does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

MOST = 10**18 - 1  # 18 digits: identifiers have as many, and llguidance computes in 64 bits
BELOW, ABOVE = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")  # of schemas by name
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalProperties", "additionalItems", "contains", "unevaluatedProperties", "unevaluatedItems")


def bounded(schema: Any) -> Any:
    """The schema, whose integers have a least and a greatest value where it names none.

    Raises:
        RecursionError: it is nested too deeply.
    """
    if not isinstance(schema, dict):
        return schema
    told = cast("dict[str, Any]", schema)
    changed = {key: _within(key, value) for key, value in told.items()}
    return changed | _bounds(told) if "integer" in _types(told) else changed


def _within(key: str, value: Any) -> Any:
    if key in NAMED and isinstance(value, dict):
        return {name: bounded(one) for name, one in cast("dict[str, Any]", value).items()}
    if key in LISTED and isinstance(value, list):
        return [bounded(one) for one in cast("list[Any]", value)]
    return bounded(value) if key in SINGLE else value


def _types(schema: Mapping[str, Any]) -> list[Any]:
    """What it may be, unless its values are listed or any number is among them."""
    types: Any = schema.get("type")
    listed: list[Any] = cast("list[Any]", types) if isinstance(types, list) else [types]
    return [] if {"enum", "const"} & schema.keys() or "number" in listed else listed


def _bounds(schema: Mapping[str, Any]) -> dict[str, int]:
    """Those that are missing; what lies beyond them by the schema's own word is left alone."""
    own = [schema[name] for name in (*BELOW, *ABOVE) if name in schema]
    if any(not isinstance(bound, int | float) or abs(bound) > MOST for bound in own):
        return {}
    below = {} if any(name in schema for name in BELOW) else {"minimum": -MOST}
    return below if any(name in schema for name in ABOVE) else {**below, "maximum": MOST}
