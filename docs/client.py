"""Writes the classes of `motet-client` (`clients/python`) from the schema of compositions; `docs.generate` calls it.

Each object of the schema is a frozen dataclass: the description is its docstring, each field has its type, its default
and, as a text under it, its meaning and bounds. What every strategy can say stands once, in `Strategy`.
"""

from __future__ import annotations

import json
import keyword
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.bounds import bounds
from motet.composers.spec import composition_schema
from motet.server.shapes.requests import TraceOptions

FILE = Path(__file__).parent.parent / "clients" / "python" / "motet_client" / "compositions.py"
WIDTH = 116  # a line of 120, less the fields' indentation
HEAD = '''"""Compositions, a class for each strategy; written by `python -m docs.generate` from the server's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from motet_client.spec import Spec
'''
SIMPLE = {"string": "str", "number": "float", "integer": "int", "boolean": "bool", "null": "None"}

Schema = Mapping[str, Any]


def module() -> str:
    """The text of the file."""
    schema = composition_schema()
    kinds: dict[str, Schema] = schema["$defs"]
    strategies = _names(schema)
    common = _common([kinds[name]["properties"] for name in strategies])
    about = "What every strategy can say."
    parts = [name for name in kinds if name not in strategies]
    exported = [*parts, "TraceOptions", "Strategy", *strategies, "Part", "Composition"]
    classes = "\n\n".join(
        [
            HEAD,
            *(_class(name, "Spec", kinds[name]) for name in parts),
            _class("TraceOptions", "Spec", TraceOptions.model_json_schema()),
            _class("Strategy", "Spec", {"description": about, "properties": common}),
            *(_class(name, "Strategy", kinds[name], known=common) for name in strategies),
            _aliases(_names(kinds["Compose"]["properties"]["compose"]["items"])),
        ]
    )
    return f"{classes}\n{_exported(exported)}"


def _exported(names: Iterable[str]) -> str:
    listed = "".join(f'    "{name}",\n' for name in sorted(names))
    return f"__all__ = [\n{listed}]\n"


def _common(properties: Iterable[Schema]) -> Schema:
    """The fields that are the same in all."""
    first, *others = properties
    return {name: field for name, field in first.items() if all(other.get(name) == field for other in others)}


def _class(name: str, parent: str, schema: Schema, known: Schema | None = None) -> str:
    """One class; fields that are `known` are its parent's."""
    own = {key: field for key, field in schema["properties"].items() if key not in (known or {})}
    tag = [f"strategy = {json.dumps(field['const'])}" for field in own.values() if "const" in field]
    fields = [line for key, field in own.items() if "const" not in field for line in _field(key, field, schema)]
    groups = [group for group in (_docstring(schema["description"]), [*tag, *fields]) if group]
    body = "\n\n".join("\n".join(group) for group in groups)
    return f"@dataclass(frozen=True, kw_only=True)\nclass {name}({parent}):\n{textwrap.indent(body, '    ')}\n"


def _docstring(text: str) -> list[str]:
    lines = _quoted(text).splitlines()
    return [*lines, '"""'] if len(lines) > 1 else [f'{lines[0]}"""']


def _quoted(text: str) -> str:
    return f'"""{text}'.replace("\\", "\\\\")


def _field(name: str, schema: Schema, owner: Schema) -> Iterator[str]:
    """Declaration and docstring. Names that Python keeps for itself get a `_` behind them."""
    attribute = f"{name}_" if keyword.iskeyword(name) else name
    yield f"{attribute}: {_type(schema)}{'' if name in owner.get('required', ()) else _default(schema)}"
    limits = [*_limits(schema)]
    text = f"{schema.get('description', '')}{f' ({limits[0]})' if limits else ''}"
    yield from textwrap.wrap(f'{_quoted(text.strip())}"""', WIDTH)


def _default(schema: Schema) -> str:
    """As Python writes it; what the server makes, and the schema tells no value of, is left out by None."""
    if "default" not in schema:
        return " | None = None"
    default = schema["default"]
    return f" = {json.dumps(default) if isinstance(default, str) else repr(default)}"


def _limits(schema: Schema) -> Iterator[str]:
    """Bounds of a number, of a list's length or of what it holds, in words."""
    for option in schema.get("anyOf", [schema]):
        found = bounds(option)
        if found:
            yield ", ".join(found)
        elif "maxItems" in option:
            yield f"{option.get('minItems', 0)} to {option['maxItems']} of them"


def _type(schema: Schema) -> str:
    """The annotation."""
    if "$ref" in schema:
        return _name(schema)
    if "oneOf" in schema:
        return "Part"
    if "enum" in schema:
        return f"Literal[{', '.join(map(json.dumps, schema['enum']))}]"
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if schema["type"] == "array":
        return f"Sequence[{_type(schema['items'])}]"
    if schema["type"] == "object":
        return f"Mapping[str, {_type(schema['additionalProperties'])}]"
    return SIMPLE[schema["type"]]


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _names(union: Schema) -> list[str]:
    return [_name(option) for option in union["oneOf"]]


def _aliases(parts: Iterable[str]) -> str:
    union = "\n    | ".join(parts)
    return f"Part: TypeAlias = (\n    {union}\n)\nComposition: TypeAlias = Part | Compose\n"
