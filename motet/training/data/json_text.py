"""JSON of data files, read strictly: what Python's own reader takes in silence is refused here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeGuard

from motet.training.data.errors import RowError

BOM = "\ufeff"
HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
HALF = re.compile("[\ud800-\udfff]")
BLANKS = re.compile(r"[ \t\r\n]*")  # JSON's own; others stand for themselves


class _Fault(RowError):
    """Valid for Python's reader, not for this one."""


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether parsed JSON is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether parsed JSON is a list."""
    return isinstance(value, list)


def lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Each row as one line of a file of JSON lines."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parse(line: bytes) -> object:
    """The value of one line, which may begin with a byte order mark.

    Raises:
        RowError: no UTF-8; no JSON; NaN and infinities, which JSON has not; a name given twice in one object; half of
            a surrogate pair, which is no character and has no UTF-8; values nested deeper than Python's stack.
    """
    try:
        text = line.decode().removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    try:
        return _checked(_STRICT.decode(text), text)
    except json.JSONDecodeError as error:
        raise RowError(f"invalid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise _refused(error) from error


def elements(text: str) -> Iterator[tuple[int, object]]:
    """(line, value) of each element of the list that `text` is, the line counted from 1; for an element that `parse`
    would refuse, its RowError in the value's place.

    Raises:
        JSONDecodeError: no JSON from there on.
        RecursionError: nested too deeply to find the element's end.
    """
    line, end = 1, 0
    at = _blank(text, _blank(text, 0) + 1)
    while text[at : at + 1] != "]":
        line, end = line + text.count("\n", end, at), at
        value, stop = _element(text, at)
        yield line, value
        at = _blank(text, stop)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _blank(text, at + 1)
    if (rest := _blank(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _blank(text: str, at: int) -> int:
    match = BLANKS.match(text, at)
    return at if match is None else match.end()


def _element(text: str, at: int) -> tuple[object, int]:
    try:
        value, stop = _STRICT.raw_decode(text, at)
        return _checked(value, text[at:stop]), stop
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        return _refused(error), _LENIENT.raw_decode(text, at)[1]


def _refused(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    return RowError(
        "invalid JSON: nested too deeply" if isinstance(error, RecursionError) else f"invalid JSON: {error}"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Fault(f"{next(name for name in names if names.count(name) > 1)!r} is given twice in one object")
    return values


def _constant(name: str) -> NoReturn:
    raise _Fault(f"{name} is no JSON; write null for a value that is missing")


_LENIENT = json.JSONDecoder(parse_int=str)  # finds where a faulty value ends
_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _checked(value: object, text: str) -> object:
    """The value, none of whose texts holds half a surrogate pair."""
    if HALF_ESCAPED.search(text):
        for place, string in _strings(value, ""):
            if half := HALF.search(string):
                raise _Fault(
                    f"{place or 'text'}: \\u{ord(half[0]):04x} is half of a surrogate pair and no character; "
                    "write both halves, or the character itself"
                )
    return value


def _strings(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Every text with its place, `messages[2].content`; names of fields too."""
    if isinstance(value, str):
        yield place, value
    elif is_list(value):
        for number, item in enumerate(value, 1):
            yield from _strings(item, f"{place}[{number}]")
    elif is_object(value):
        for name, item in value.items():
            yield place, name
            yield from _strings(item, f"{place}.{name}".removeprefix("."))
