"""Settings as the operator's file and recipes are written: YAML in which every name stands once, numbers are those of
YAML 1.2 and no document grows without bound when it is read; dotted overrides; all problems told at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

Tree = dict[str, Any]
# the core schema of YAML 1.2; 1.1 reads 010 as eight and 12:30:00 as seconds, and wants a point and a sign in 1e-3
NUMBERS = {
    "int": re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
MAX_COMPARED = 200  # characters of a name that is not known; its neighbours are sought letter by letter
MAX_NODES = 100_000  # values of a document, those behind aliases counted as often as they are named


class _Loader(yaml.SafeLoader):
    """PyYAML reads numbers as in YAML 1.1, and lets a later key replace an earlier one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the name {key.value!r} is given twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _use_numbers_of_yaml_1_2() -> None:
    tags = {f"tag:yaml.org,2002:{kind}": pattern for kind, pattern in NUMBERS.items()}
    resolvers = cast("dict[str, list[tuple[str, re.Pattern[str]]]]", _Loader.yaml_implicit_resolvers)
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in tags] for first, known in resolvers.items()
    }
    for tag, pattern in tags.items():
        _Loader.add_implicit_resolver(tag, pattern, list("-+.0123456789"))
    _Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)  # 010 is ten
    except ValueError as error:  # digits without end
        said = f"a number of {len(text):,} digits"
        raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from error


_use_numbers_of_yaml_1_2()


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


def children(value: object) -> Collection[object]:
    """What lies directly in decoded JSON or YAML: the values of an object, the items of a list."""
    if isinstance(value, Mapping):
        return cast("Mapping[object, object]", value).values()
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()


def texts_of(value: object) -> Iterator[str]:
    """All values in decoded YAML that are texts, names of models among them."""
    if isinstance(value, str):
        yield value
    for item in children(value):
        yield from texts_of(item)


def closest(name: str, known: Collection[str], share: float = 0.6) -> str | None:
    """What was probably meant, None where no known name has this `share` of its letters in common."""
    return next(iter(difflib.get_close_matches(name[:MAX_COMPARED], sorted(known), n=1, cutoff=share)), None)


def nearest(name: str, known: Collection[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name is close."""
    close = closest(name, known)
    return "" if close is None else f" Did you mean {close!r}?"


def offer(name: str, allowed: Collection[str]) -> str:
    """` Did you mean 'x'? Allowed: x, y`, without the question where no name is close."""
    return f"{nearest(name, allowed)} Allowed: {', '.join(allowed)}"


class SettingsError(Exception):
    """Settings that cannot be used. `problems`: everything that is wrong, one sentence each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Setting(BaseModel, frozen=True):
    """Frozen, and strict about names that it does not know; the texts below fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


def read_mapping(file: Path, wanted: str) -> Tree:
    """The YAML mapping of a file.

    Args:
        wanted: what the mapping should hold, for the message.

    Raises:
        SettingsError: it cannot be read, is no YAML, or no mapping.
    """
    try:
        tree: Any = read_yaml(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not readable as YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{file}: a mapping {wanted} is expected")
    return {str(key): value for key, value in cast(Tree, tree).items()}


def override(tree: Tree, overrides: Sequence[str]) -> list[str]:
    """Sets every `dotted.name=value` in place, values as in YAML, later ones last; what cannot be set."""
    problems: list[str] = []
    for text in overrides:
        name, sign, value = text.partition("=")
        if not sign or not all(name.split(".")):
            problems.append(f"{text!r}: overrides are written dotted.name=value")
            continue
        try:
            set_value(tree, name, read_yaml(value))
        except yaml.YAMLError as error:
            problems.append(f"{name}: {value!r} is not readable as YAML: {error}")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def set_value(tree: Tree, name: str, value: object) -> None:
    """Sets `a.b.0.c`; sections that are missing are made, numbers are indices of lists that are there.

    What lies on the way is copied: an alias of YAML stands in two places, and one of them alone is meant.

    Raises:
        ValueError: the name leads through a value that holds no names.
    """
    *path, last = name.split(".")
    at: Any = tree
    for part in path:
        below = _item(at, part, f"{part!r} is looked for in a value without names")
        at[_key(at, part)] = Tree() if below is None else copy(below)
        at = at[_key(at, part)]
    _item(at, last, f"{last!r} cannot be set in a value without names")
    at[_key(at, last)] = value


def _item(values: Any, part: str, refusal: str) -> Any:
    if isinstance(values, dict):
        return cast(Tree, values).get(part)
    if not isinstance(values, list):
        raise ValueError(refusal)
    items = cast("list[Any]", values)
    if not part.isdecimal() or int(part) >= len(items):
        raise ValueError(f"{part!r} is no index of a list of {len(items)}")
    return items[int(part)]


def _key(values: Any, part: str) -> str | int:
    return int(part) if isinstance(values, list) else part


def sentences(
    problems: Sequence[ErrorDetails], kind: type[BaseModel], tree: object, say: Callable[[ErrorDetails], str]
) -> list[str]:
    """pydantic's problems with `kind` made from `tree`, without full stops: names as the user wrote them, and for
    unknown ones the nearest.

    Args:
        say: what is said of values, where no name is unknown.
    """
    # a list whose items are wrong is also called too short, having none that are right
    deep = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
    own = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in deep]
    return [f"{name_of(problem, tree)}{_wrong(problem, kind, say)}" for problem in own]


def _wrong(problem: ErrorDetails, kind: type[BaseModel], say: Callable[[ErrorDetails], str]) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f": unknown field.{offer(str(problem['loc'][-1]), fields_at(kind, problem['loc'][:-1]))}"
        case "union_tag_invalid":
            tag = str(context.get("tag"))
            return f".type: {tag!r} is unknown.{offer(tag, _quoted(context.get('expected_tags')))}"
        case "union_tag_not_found":
            return ".type: required"
        case "literal_error":
            value = problem["input"]
            return f": {value!r} is not allowed.{offer(str(value), _quoted(context.get('expected')))}"
        case _:
            return f": {say(problem)}"


def _quoted(text: object) -> list[str]:
    return re.findall(r"'([^']*)'", str(text))


def name_of(problem: ErrorDetails, tree: object) -> str:
    """The dotted name as the user wrote it, without the tags that unions put into pydantic's."""
    *outer, last = problem["loc"] or ("recipe",)
    names: list[str] = []
    at = tree
    for part in outer:
        if isinstance(at, Mapping) and part in at:
            at = cast("Mapping[object, object]", at)[part]
        elif isinstance(at, list) and isinstance(part, int):
            at = cast("list[object]", at)[part]
        else:
            continue
        names.append(str(part))
    named = isinstance(last, int) or (isinstance(at, Mapping) and last in at)
    tag = problem["type"] not in ("missing", "extra_forbidden") and not named
    return ".".join(names if tag and names else [*names, str(last)])


def fields_at(kind: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """The names that the section at `loc` allows; parts of it that are no fields (indices, keys, tags of unions) are
    followed as far as they lead."""
    sections = [kind]
    for part in loc:
        tagged = [section for section in sections if part in (section.__name__, _tag(section))]
        fields = [section.model_fields[str(part)] for section in sections if str(part) in section.model_fields]
        below = [section for field in fields for section in models_in(field.annotation)]
        sections = below or tagged or sections
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def _tag(section: type[BaseModel]) -> object:
    """The value of `type` by which a discriminated union knows a section."""
    field = section.model_fields.get("type")
    return None if field is None else next(iter(get_args(field.annotation)), None)


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The classes of objects that a field may hold, however deep in its type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)
