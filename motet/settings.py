"""YAML as the operator's file and recipes are written in it: every name once, numbers as in YAML 1.2, and no document
that grows without bound when it is read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

import yaml

MAX_NODES = 100_000  # values of a document, those behind aliases counted as often as they are named


class _Loader(yaml.SafeLoader):
    """PyYAML reads numbers as in YAML 1.1, where an exponent needs a point and a sign, and lets a later key replace an
    earlier one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the name {key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The document's value.

    Raises:
        yaml.YAMLError: no YAML, a name given twice, nesting or aliases without end.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        size = _expanded_size(node, {})
        if size > MAX_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MAX_NODES:,} values")
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        loader.dispose()


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Values of a node with its aliases written out; each node is counted once, whatever it stands for."""
    if id(node) not in sizes:
        sizes[id(node)] = MAX_NODES + 1  # what a node inside itself would come to
        parts: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in parts)
    return sizes[id(node)]


def texts_of(value: object) -> Iterator[str]:
    """All values in decoded YAML that are texts, names of models among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[str, Any]", value).values():
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            yield from texts_of(item)


def nearest(name: str, known: Collection[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
