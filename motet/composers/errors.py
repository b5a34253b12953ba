"""What a client reads about a composition that cannot be built."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterator, Sequence
from typing import cast

from pydantic import BeforeValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from motet.settings import closest

_NAMES_SHOWN = 40  # all strategies
MAX_PROBLEMS = 20  # that one refusal names
MAX_SHOWN = 200  # characters of anything that a client sent
_WANTED = {  # pydantic's kinds of problems in plain words
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a valid integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a valid number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a valid list"),
    "dict_type": "an object",
    "path_type": "a path",
    "string_type": "a valid string",
}
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxlevel, _repr.maxdict, _repr.maxlist = 2, 3, 3


class CompositionError(Exception):
    """A composition is refused. `param` is the dotted path of the (first) field at fault, `code` the kind of fault for
    programs."""

    def __init__(self, message: str, param: str = "composition", code: str = "invalid_composition") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


def refusal(lines: Sequence[tuple[str, str]], count: int) -> CompositionError:
    """The refusal of `count` problems, of which the first are (path, what is wrong) `lines`."""
    return CompositionError(sentences([f"{path}: {text}" for path, text in lines], count), lines[0][0])


def sentences(problems: Sequence[str], count: int) -> str:
    """The first of `count` problems, and how many more there are."""
    more = count - min(len(problems), MAX_PROBLEMS)
    return "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more:,} more problems" if more else "")


def at_most(entries: int) -> BeforeValidator:
    """Refuses an object of more entries before pydantic has looked for what is wrong with each."""

    def check(value: object) -> object:
        if isinstance(value, dict) and (count := len(cast("dict[object, object]", value))) > entries:
            numbers = {"most": f"{entries:,}", "count": f"{count:,}"}
            raise PydanticCustomError("too_long", "Input should have at most {most} entries, not {count}", numbers)
        return cast(object, value)

    return BeforeValidator(check)


def show(value: object) -> str:
    """`repr`, short whatever the client sent."""
    return _repr.repr(value)


def allowed_names(kind: str, value: str, allowed: Collection[str]) -> str:
    """`kind: a, b, c`, led by the nearest of them where one is near to `value`."""
    names = sorted(allowed)
    near = closest(value, names)
    hint = "" if near is None else f"did you mean {near!r}? "
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{hint}{kind}: {', '.join(names[:_NAMES_SHOWN])}{more}"


def explain(problem: ErrorDetails, fields: Collection[str], strategies: Collection[str]) -> str:
    """One of pydantic's problems in words: the value, what is allowed and the nearest suggestion.

    Args:
        problem: one entry of `ValidationError.errors()`.
        fields: the field names of the object that the problem lies in.
        strategies: the names a `strategy` can have.
    """
    value = show(problem["input"])
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown field; {allowed_names('allowed', str(problem['loc'][-1]), fields)}"
        case "union_tag_invalid":
            tag = str(problem.get("ctx", {}).get("tag"))
            return f"unknown strategy {show(tag)}; {allowed_names('allowed', tag, strategies)}"
        case "union_tag_not_found":
            return f"strategy is missing; {allowed_names('allowed', '', strategies)}"
        case "literal_error":
            allowed = list(_quoted(str(problem.get("ctx", {}).get("expected"))))
            return f"{value} is not allowed; {allowed_names('allowed', _text(problem['input']), allowed)}"
        case "missing":
            return "required"
        case "value_error":
            return str(problem.get("ctx", {}).get("error"))
        case "model_type" | "model_attributes_type":
            return f"must be an object, got {value}"
        case kind if (wanted := _WANTED.get(kind)) is not None:
            return f"must be {wanted}, got {value}"
        case "too_short":
            least = problem.get("ctx", {}).get("min_length")
            return f"must hold at least {least} entr{'y' if least == 1 else 'ies'}, got {value}"
        case _:
            return f"{problem['msg'].replace('Input should', 'must').replace('must have', 'must hold')}, got {value}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _quoted(expected: str) -> Iterator[str]:
    yield from re.findall(r"'([^']*)'", expected)
