"""Rows of JSONL, JSON, CSV and Parquet files, each with its place; what cannot be read is collected, not raised."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from motet.training.batch import Source
from motet.training.data.errors import listing, nearest

JSON_COLUMNS = frozenset({"messages", "conversations", "spans"})  # held as JSON text in a CSV cell


@dataclass(frozen=True, slots=True)
class Row:
    """One record as its file has it."""

    source: Source
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row, or a whole file, that cannot be read."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether parsed JSON is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether parsed JSON is a list."""
    return isinstance(value, list)


def find_files(patterns: Sequence[str], root: Path) -> tuple[list[Path], list[str]]:
    """The files of the patterns (relative ones from `root`), each once, globs sorted; and what is wrong with them."""
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        full = root / Path(pattern).expanduser()
        files = [full] if full.is_file() else sorted(path for path in _matches(full) if path.is_file())
        if not files:
            problems.append(_missing(pattern, full))
        found |= dict.fromkeys(files)
    problems += [_unreadable(path) for path in found if path.suffix not in READERS]
    return list(found), problems


def _matches(full: Path) -> Iterable[Path]:
    """What a glob finds; folders before the first magic part are taken as they are."""
    if not glob.has_magic(str(full)):
        return ()
    first = next(i for i, part in enumerate(full.parts) if glob.has_magic(part))
    return Path(*full.parts[:first]).glob(str(Path(*full.parts[first:])))


def _missing(pattern: str, full: Path) -> str:
    if glob.has_magic(pattern):
        return f"{pattern!r} matches no file"
    beside = [path.name for path in full.parent.glob("*")] if full.parent.is_dir() else []
    return f"there is no file {pattern!r} ({full}){nearest(full.name, beside)}"


def _unreadable(path: Path) -> str:
    return f"{path}: {path.suffix or 'a file without a suffix'} is not read; allowed: {listing(READERS)}"


def read_rows(path: Path) -> Iterator[Row | Bad]:
    """Every row of a file in order. `path` has a suffix of `READERS`."""
    try:
        yield from READERS[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        yield Bad(str(path), f"cannot be read: {error}")


def _jsonl(path: Path) -> Iterator[Row | Bad]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            source = Source(str(path), number)
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield _parsed(source, text)


def _parsed(source: Source, text: bytes) -> Row | Bad:
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError as error:
        return Bad(str(source), f"not UTF-8 (byte {error.start + 1} of the line)")
    except (json.JSONDecodeError, RecursionError) as error:
        return Bad(str(source), f"invalid JSON: {error}")
    return _row(source, value)


def _row(source: Source, value: object) -> Row | Bad:
    if not is_object(value):
        return Bad(str(source), f"expected an object with columns, got {type(value).__name__}")
    return Row(source, value)


def _json(path: Path) -> Iterator[Row | Bad]:
    """One list of objects; a row's number stands for its line."""
    try:
        values = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        yield Bad(f"{path}:{error.lineno}", f"invalid JSON: {error}")
        return
    if not is_list(values):
        yield Bad(str(path), f"expected a list of objects, got {type(values).__name__} (one object per line is .jsonl)")
        return
    for number, value in enumerate(values, 1):
        yield _row(Source(str(path), number), value)


def _csv(path: Path) -> Iterator[Row | Bad]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = next(reader, list[str]())
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _cells(Source(str(path), line), columns, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            yield Bad(f"{path}:{reader.line_num}", f"invalid CSV: {error}")


def _cells(source: Source, columns: Sequence[str], cells: Sequence[str]) -> Row | Bad:
    if len(cells) != len(columns):
        return Bad(str(source), f"{len(cells)} cells, but the head names {len(columns)} columns")
    values: dict[str, Any] = dict(zip(columns, cells, strict=True))
    for column in JSON_COLUMNS & set(columns):
        try:
            values[column] = json.loads(values[column]) if values[column] else None
        except json.JSONDecodeError as error:
            return Bad(str(source), f"{column}: invalid JSON in the cell: {error}")
    return Row(source, values)


def _parquet(path: Path) -> Iterator[Row | Bad]:
    """A row's number stands for its line."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in cast(Iterable[Any], file.iter_batches()):
                for values in cast(Iterable[dict[str, Any]], batch.to_pylist()):
                    number += 1
                    yield Row(Source(str(path), number), values)
    except cast("type[Exception]", arrow.ArrowException) as error:
        yield Bad(str(path), f"cannot be read as Parquet: {error}")


READERS: dict[str, Callable[[Path], Iterator[Row | Bad]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
