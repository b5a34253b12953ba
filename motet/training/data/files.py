"""Rows of JSONL, JSON, CSV and Parquet files, each with its place; what cannot be read is collected, not raised.

The one reader of data: training, curation, evaluation and audits take their files through it.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from motet.settings import nearest
from motet.training.data.errors import RowError, listing
from motet.training.data.json_text import BOM, elements, is_list, is_object, parse

# held as JSON text in a CSV cell
JSON_COLUMNS = frozenset({"messages", "conversations", "spans", "tools", "perturbed_answer"})
COMPRESSED = ".gz"


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Where a record came from, for messages: `file:line`, counted from 1 (Parquet: its row). Elements of a JSON list
    may share a line, so that `row` counts them."""

    file: str
    line: int
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + ("" if self.row is None else f" (row {self.row})")


@dataclass(frozen=True, slots=True)
class Row:
    """One record as its file has it."""

    source: RecordSource
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """One entry of a file, whatever it is."""

    source: RecordSource
    value: object


@dataclass(frozen=True, slots=True)
class Bad:
    """A row, or a whole file, that cannot be read."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


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
    problems += [unreadable(path) for path in found if not is_read(path)]
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
    return f"there is no file {pattern!r} ({full}).{nearest(full.name, beside)}"


def is_read(path: Path) -> bool:
    """Whether files of this suffix are read."""
    return _suffix(path) in READERS


def unreadable(path: Path) -> str:
    """What is said of a file for which not `is_read`."""
    suffix = _suffix(path) or "a file without a suffix"
    return f"{path}: {suffix} is not read; allowed: {listing(READERS)}, each also with {COMPRESSED} behind it"


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == COMPRESSED else path.suffix


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix == COMPRESSED else path.open("rb")


def read_rows(path: Path) -> Iterator[Row | Bad]:
    """Every row of a file in order. `is_read(path)`."""
    for entry in read_values(path):
        if isinstance(entry, Bad):
            yield entry
        elif is_object(entry.value):
            yield Row(entry.source, entry.value)
        else:
            yield Bad(str(entry.source), f"expected an object with columns, got {type(entry.value).__name__}")


def read_values(path: Path) -> Iterator[Value | Bad]:
    """Every entry of a file in order, of any type where the file is JSON. `is_read(path)`."""
    try:
        yield from READERS[_suffix(path)](path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        utf16 = isinstance(error, UnicodeDecodeError) and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        yield Bad(str(path), "is UTF-16; save it as UTF-8" if utf16 else f"cannot be read: {error}")


def _json(path: Path) -> Iterator[Value | Bad]:
    """A list, or one value per line, whatever the suffix: datasets' `to_json` and TOFU name lines `.json`."""
    with _open(path) as file:
        first = next((line for line in file if line.removeprefix(BOM.encode()).strip()), b"")
        first = first.removeprefix(BOM.encode()).lstrip()
        file.seek(0)
        if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
            yield Bad(str(path), "is UTF-16; save it as UTF-8")
        elif first.startswith(b"["):
            yield from _listed(path, file.read())
        elif first.startswith(b"{") and (whole := _one_object(file, first)) is not None:
            yield Bad(str(path), _spread(whole))
        else:
            yield from _lines(path, file)


def _lines(path: Path, file: IO[bytes]) -> Iterator[Value | Bad]:
    """Only a line feed ends a line: U+2028 and the like stand in texts as they are."""
    for number, line in enumerate(file, 1):
        source = RecordSource(str(path), number)
        if line.removeprefix(BOM.encode()).strip():
            try:
                yield Value(source, parse(line))
            except RowError as error:
                yield Bad(str(source), str(error))


def _listed(path: Path, content: bytes) -> Iterator[Value | Bad]:
    try:
        for row, (line, value) in enumerate(elements(content.decode().removeprefix(BOM)), 1):
            source = RecordSource(str(path), line, row)
            yield Bad(str(source), str(value)) if isinstance(value, RowError) else Value(source, value)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield Bad(f"{path}:{line}", f"not UTF-8 (byte {error.start + 1} of the file)")
    except json.JSONDecodeError as error:
        yield Bad(f"{path}:{error.lineno}", f"invalid JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        yield Bad(str(path), "invalid JSON: nested too deeply")


def _one_object(file: IO[bytes], first: bytes) -> dict[str, Any] | None:
    """The file's one object where it takes several lines, so that its first line is no value; `file` at its start."""
    if _loaded(first) is not None:
        return None
    whole = _loaded(file.read())
    file.seek(0)
    return whole if is_object(whole) else None


def _loaded(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _spread(whole: dict[str, Any]) -> str:
    lists = [name for name, value in whole.items() if is_list(value)]
    held = f"; its field {lists[0]!r} holds a list: write that alone" if lists else ""
    return f"expected a list of objects, or one object per line, got one object over several lines{held}"


def _csv(path: Path) -> Iterator[Value | Bad]:
    csv.field_size_limit(sys.maxsize)  # Python's own is 128 KiB, which long texts exceed
    with _open(path) as file:
        reader = csv.reader(_decoded(file), strict=True)
        try:
            columns = next(reader, list[str]())
            doubled = sorted({name for name in columns if columns.count(name) > 1})
            if doubled:
                yield Bad(f"{path}:1", f"the head names {listing(doubled)} twice")
                return
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _cells(RecordSource(str(path), line), columns, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            yield Bad(f"{path}:{reader.line_num}", f"invalid CSV: {error}")


def _decoded(file: IO[bytes]) -> IO[str]:
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _cells(source: RecordSource, columns: Sequence[str], cells: Sequence[str]) -> Value | Bad:
    if len(cells) != len(columns):
        return Bad(str(source), f"{len(cells)} cells, but the head names {len(columns)} columns")
    values: dict[str, Any] = dict(zip(columns, cells, strict=True))
    for column in JSON_COLUMNS & set(columns):
        try:
            values[column] = parse(values[column].encode()) if values[column] else None
        except RowError as error:
            return Bad(str(source), f"{column}: {error}, in the cell")
    return Value(source, values)


def _parquet(path: Path) -> Iterator[Value | Bad]:
    """A row's number stands for its line. Arrow gives each object of a column the fields of all of them, null where it
    has none: those are left out, so that a chat template does not write them into every tool call."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with _open(path) as opened, parquet.ParquetFile(opened) as file:
            number = 0
            for batch in cast(Iterable[Any], file.iter_batches()):
                for values in cast(Iterable[dict[str, Any]], batch.to_pylist()):
                    number += 1
                    yield Value(
                        RecordSource(str(path), number), {name: _unfilled(value) for name, value in values.items()}
                    )
    except cast("type[Exception]", arrow.ArrowException) as error:
        yield Bad(str(path), f"cannot be read as Parquet: {error}")


def _unfilled(value: object) -> object:
    """Without the null fields of its objects, at any depth."""
    if is_list(value):
        return [_unfilled(item) for item in value]
    if is_object(value):
        return {name: _unfilled(item) for name, item in value.items() if item is not None}
    return value


READERS: dict[str, Callable[[Path], Iterator[Value | Bad]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
