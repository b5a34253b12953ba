"""Setting one value in decoded YAML by its dotted name."""

from __future__ import annotations

from typing import Any, cast

Tree = dict[str, Any]


def set_value(tree: Tree, name: str, value: object) -> None:
    """Sets `a.b.0.c` in place; sections that are missing are made, numbers are indices of lists that are there.

    Raises:
        ValueError: the name leads through a value that holds no names.
    """
    *path, last = name.split(".")
    at: Any = tree
    for part in path:
        at = _below(at, part)
    if isinstance(at, list):
        cast("list[Any]", at)[_index(at, last)] = value
    elif isinstance(at, dict):
        at[last] = value
    else:
        raise ValueError(f"{last!r} cannot be set in a value without names")


def _below(at: Any, part: str) -> Any:
    if isinstance(at, list):
        return cast("list[Any]", at)[_index(at, part)]
    if isinstance(at, dict):
        return cast(Tree, at).setdefault(part, {})
    raise ValueError(f"{part!r} is looked for in a value without names")


def _index(values: Any, part: str) -> int:
    if not part.isdigit() or int(part) >= len(values):
        raise ValueError(f"{part!r} is no index of a list of {len(values)}")
    return int(part)
