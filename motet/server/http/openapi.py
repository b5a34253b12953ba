"""The OpenAPI description, with the compositions' own schema in it."""

from __future__ import annotations

import json
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from motet.composers.spec import composition_schema

NAME = "Composition"


def describe_api(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description; every `composition` field refers to the union of all strategies."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = cast("dict[str, Any]", described["components"]["schemas"])
        _forget_fastapis_refusals(described["paths"], schemas)
        _refer(schemas)
        schemas.update(_composition_schemas())
        _describe_constants(schemas)
        app.openapi_schema = described
    return app.openapi_schema


def _composition_schemas() -> dict[str, Any]:
    """The union and its parts, with pydantic's references turned into OpenAPI's."""
    schema = json.loads(json.dumps(composition_schema()).replace("#/$defs/", "#/components/schemas/"))
    return {**schema.pop("$defs"), NAME: schema}


def _forget_fastapis_refusals(paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    """FastAPI describes a 422 of its own shape, where this server answers 400 in OpenAI's."""
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _describe_constants(schemas: dict[str, Any]) -> None:
    """Fields that can only have one value say what kind of object theirs is."""
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if "const" in field:
                field.setdefault("description", f"Always `{field['const']}`.")


def _refer(schemas: dict[str, Any]) -> None:
    for schema in schemas.values():
        own = schema.get("properties", {}).get("composition")
        if own is not None and "title" in own and schema["title"].endswith(("Request", "Candidate")):
            own["anyOf"] = [{"$ref": f"#/components/schemas/{NAME}"}, {"type": "null"}]
