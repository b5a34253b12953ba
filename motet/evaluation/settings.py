"""Settings that are validated as a whole: frozen, strict about names, all problems reported together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError


class RecipeError(Exception):
    """`problems`: everything that is wrong, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Setting(BaseModel, frozen=True):
    """Frozen, and strict about names that it does not know; the texts below fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


S = TypeVar("S", bound=Setting)


def validated(kind: type[S], tree: Mapping[str, Any]) -> S:
    """`kind` made from decoded YAML.

    Raises:
        RecipeError: all problems; unknown names with what is allowed and the nearest one.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        # A list whose items are wrong is also called too short, having none that are right.
        deep = {problem["loc"][:1] for problem in problems if len(problem["loc"]) > 1}
        own = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in deep]
        raise RecipeError([_sentence(kind, p["type"], p["loc"], p["msg"]) for p in own]) from error


def _sentence(kind: type[Setting], problem: str, loc: tuple[int | str, ...], message: str) -> str:
    name = ".".join(map(str, loc)) or "recipe"
    if problem != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}."
    allowed = fields_at(kind, loc[:-1])
    return f"{name}: unknown name.{nearest(str(loc[-1]), allowed)} Allowed: {', '.join(allowed)}."


def nearest(name: str, known: list[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name is close."""
    close = get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The names that are allowed in the section at `loc`, where parts that are no fields (indices, keys, the tags
    of unions) are followed as far as they lead."""
    sections: list[type[BaseModel]] = [kind]
    for part in loc:
        below = [
            section
            for parent in sections
            if (field := parent.model_fields.get(str(part))) is not None
            for section in _sections(field.annotation)
        ]
        tagged = [section for section in sections if _tag(section) == str(part)]
        sections = below or tagged or sections
    return list(sections[0].model_fields)


def _tag(section: type[BaseModel]) -> str | None:
    """The value of `type` by which a discriminated union knows a section; its class's name in a plain union."""
    field = section.model_fields.get("type")
    return section.__name__ if field is None else next(iter(get_args(field.annotation)), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)
