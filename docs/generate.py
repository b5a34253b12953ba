"""Writes the parts of these pages that the code already says: `python -m docs.generate`.

A part stands between two comments,

    <!-- made from motet.operator.settings:ServerConfig -->
    <!-- end -->

and holds the class's docstring and a table of its fields, from its JSON schema. A mapping of names to classes gives
one such part, under a heading, for each of them; a mapping of names to sentences gives a table. Where people write more
into the sections, each has its own part, and

    <!-- a section for each of motet.composers.strategies:STRATEGIES -->

is where the sections go that are not on the page yet. The classes of `clients/python` are written, too (`client.py`).
Tests compare the pages and the classes with what this writes.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from docs import client
from docs.bounds import bounds

PAGES = Path(__file__).parent
PART = re.compile(r"(<!-- made from (?P<source>[\w.]+:\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
EACH = re.compile(r"<!-- a section for each of (?P<module>[\w.]+):(?P<name>\w+) -->")

Schema = Mapping[str, Any]


def main() -> None:
    for page in sorted(PAGES.glob("*.md")):
        _write(page, with_parts(page.read_text("utf-8")))
    _write(client.FILE, client.module())


def _write(file: Path, made: str) -> None:
    if not file.exists() or file.read_text("utf-8") != made:
        file.write_text(made, "utf-8")
        print(f"wrote {file.name}")


def with_parts(text: str) -> str:
    """The page with all its made parts written anew, and the sections that it lacks."""
    text = EACH.sub(lambda mark: "".join(_missing(text, mark["module"], mark["name"])) + mark[0], text)
    return PART.sub(lambda part: f"{part[1]}\n{_made(part['source'])}\n\n{part[3]}", text)


def _missing(text: str, module: str, name: str) -> Iterator[str]:
    """Headings and empty parts for the classes of a mapping that no part of the page is made from."""
    classes: Mapping[str, type[BaseModel]] = getattr(import_module(module), name)
    for key, kind in classes.items():
        mark = f"<!-- made from {module}:{kind.__name__} -->"
        if mark not in text:
            yield f"### `{key}`\n\n{mark}\n<!-- end -->\n\n"


def _made(source: str) -> str:
    module, _, name = source.partition(":")
    value = getattr(import_module(module), name)
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in cast("Mapping[str, Any]", value).values()):
        sentences = cast("Mapping[str, str]", value)
        return "\n".join(["| | |", "| --- | --- |", *(f"| `{name}` | {text} |" for name, text in sentences.items())])
    if isinstance(value, Mapping):
        classes = cast("Mapping[str, type[BaseModel]]", value)
        return "\n\n".join(f"### `{name}`\n\n{section(kind)}" for name, kind in classes.items())
    return section(value)


def section(kind: type[BaseModel]) -> str:
    """What a class says of itself, and its fields."""
    return "\n\n".join([inspect.cleandoc(kind.__doc__ or ""), *_datasets(kind), *_table(kind)])


def _datasets(kind: type[BaseModel]) -> Iterator[str]:
    """The datasets that an objective reads."""
    datasets: Mapping[str, str] | None = getattr(kind, "datasets", None)
    if datasets is not None:
        optional: frozenset[str] = getattr(kind, "optional", frozenset[str]())
        names = (f"`data.{name}` ({what}{', may be left out' * (name in optional)})" for name, what in datasets.items())
        yield f"Reads {', '.join(names)}."


def _table(kind: type[BaseModel]) -> Iterator[str]:
    schema = kind.model_json_schema()
    rows = list(_rows(schema, schema.get("$defs", {})))
    described = any(meaning for *_, meaning in rows)
    head = ["field", "value", "default", *(["meaning"] if described else [])]
    cells = [head, ["---"] * len(head), *(row[: len(head)] for row in rows)]
    if rows:
        yield "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _rows(schema: Schema, defs: Schema) -> Iterator[list[str]]:
    """Name, what is allowed, default and meaning of every field; the tag of a class in a union is its heading's."""
    for name, field in schema.get("properties", {}).items():
        if "const" in field:
            continue
        default = "**required**" if name in schema.get("required", ()) else _default(field)
        yield [f"`{name}`", _allowed(field, defs), default, _meaning(field, defs).replace("|", "\\|")]


def _meaning(field: Schema, defs: Schema) -> str:
    """The field's description, else that of the section which it holds."""
    section = defs.get(str(field.get("$ref", "")).rsplit("/", 1)[-1], {})
    text = str(field.get("description") or section.get("description") or "")
    return " ".join(text.partition("\n\n")[0].split())


def _default(field: Schema) -> str:
    value = field.get("default")
    if isinstance(value, dict) and value:  # a section: what its own table says
        return f"`{value['type']}`" if "type" in value else "as below"
    if value is None:
        return ""
    return f"`{value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}`"


def _allowed(field: Schema, defs: Schema) -> str:
    """What a value may be, in words."""
    if "$ref" in field:
        name = str(field["$ref"]).rsplit("/", 1)[1]
        target = defs[name]
        return _allowed(target, defs) if "properties" not in target else _words(name)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "discriminator" in field:
        tag = field["discriminator"]["propertyName"]
        return f"by `{tag}`: " + ", ".join(f"`{name}`" for name in field["discriminator"]["mapping"])
    options = field.get("anyOf") or field.get("oneOf")
    if options is not None:
        named = [_allowed(option, defs) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(named))
    return _typed(field, defs)


def _typed(field: Schema, defs: Schema) -> str:
    match field.get("type"):
        case "array":
            items = field.get("prefixItems") or [field.get("items", {})]
            inside = ", ".join(_allowed(item, defs) for item in items)
            return f"({inside})" if "prefixItems" in field else f"list of {inside}"
        case "object":
            inner: Any = next(iter(field.get("patternProperties", {}).values()), field.get("additionalProperties"))
            return f"mapping to {_allowed(inner, defs)}" if inner not in (None, True, {}) else "mapping"
        case "string" if "pattern" in field:
            forms = str(field["pattern"]).strip("^$").removeprefix("(").removesuffix(")").split("|")
            return ", ".join(f"`{form}`" for form in forms)
        case "string":
            return "text"
        case "boolean":
            return "`true`, `false`"
        case "integer" | "number":
            return f"{field['type']} {', '.join(bounds(field))}".strip()
        case _:
            return "anything"


def _words(name: str) -> str:
    """ModelConfig → model config."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


if __name__ == "__main__":
    main()
