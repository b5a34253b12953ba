"""A dataset's files as records, with everything that is wrong with their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from motet.training.data.errors import RowError
from motet.training.data.files import Bad, Row, find_files, is_read, read_rows
from motet.training.data.formats import FORMATS, Format, formats_of, recognise
from motet.training.data.records import Record
from motet.training.objectives.objective import RecordKind
from motet.training.recipe import Dataset


def read_records(name: str, spec: Dataset, kind: RecordKind, root: Path) -> tuple[list[Record], list[str]]:
    """The records of `spec`, at most `limit` rows of it, and the problems; `auto` recognises each file by itself."""
    files, missing = find_files(spec.files, root)
    problems = [f"data.{name}.files: {problem}" for problem in missing]
    if spec.format != "auto" and spec.format not in formats_of(kind):
        fitting = ", ".join(formats_of(kind))
        return [], [*problems, f"data.{name}.format: {spec.format} has no {kind}; allowed: auto, {fitting}"]
    if missing:
        return [], problems
    outcomes: list[Record | str] = []
    left = spec.limit
    for path in files:
        rows = list(islice(read_rows(path), left))
        left = None if left is None else left - len(rows)
        found = _parse(path, rows, spec.format, kind)
        outcomes += found if kind != "clusters" else (_of_cluster(outcome, path) for outcome in found)
    if not outcomes:
        problems.append(f"data.{name}.files: no rows in {', '.join(str(path) for path in files)}")
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    return records, problems + [outcome for outcome in outcomes if isinstance(outcome, str)]


def _of_cluster(outcome: Record | str, path: Path) -> Record | str:
    """Labelled by its file's name, up to the first dot."""
    return replace(outcome, label=path.name.partition(".")[0]) if isinstance(outcome, Record) else outcome


def guess_kind(spec: Dataset, root: Path) -> RecordKind:
    """What the first readable row is: of all formats that fit its columns, the one with the most."""
    files, _ = find_files(spec.files, root)
    rows = (row for path in files if is_read(path) for row in read_rows(path) if isinstance(row, Row))
    columns = {key for row in islice(rows, 1) for key, value in row.values.items() if value is not None}
    fitting = [form for form in FORMATS.values() if set(form.columns) <= columns]
    return max(fitting, key=lambda form: len(form.columns)).kind if fitting else "documents"


def _parse(path: Path, rows: Sequence[Row | Bad], name: str, kind: RecordKind) -> Iterator[Record | str]:
    """A record or a problem for each row of a file."""
    columns = {key for row in rows if isinstance(row, Row) for key, value in row.values.items() if value is not None}
    if not columns:
        yield from (str(row) if isinstance(row, Bad) else f"{row.source}: no columns" for row in rows)
        return
    try:
        form = FORMATS[recognise(columns, kind) if name == "auto" else name]
    except RowError as error:
        yield f"{path}: {error}"
        yield from (str(row) for row in rows if isinstance(row, Bad))
        return
    for row in rows:
        yield str(row) if isinstance(row, Bad) else _record(row, form)


def _record(row: Row, form: Format) -> Record | str:
    missing = [column for column in form.columns if row.values.get(column) is None]
    if missing:
        return f"{row.source}: no column {', '.join(missing)}; columns: {', '.join(row.values)}"
    try:
        return form.parse(row)
    except RowError as error:
        return f"{row.source}: {error}"
