"""The tables that a run fills, as files and as the few lines that are looked at first."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import Line

TABLES = ("correctness", "bandwidth", "steps")


class Tables:
    """Lines by table, each table a CSV file in the folder that is whole after every line.

    Attributes:
        facts: what the stages say of the device and of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lines: dict[str, list[Line]] = {table: [] for table in TABLES}
        self.facts: Line = {}

    def take(self, line: Line) -> None:
        table = str(line.pop("table", "facts"))
        if table not in self.lines:
            self.facts |= line
            return
        self.lines[table].append(line)
        self._write(table)

    def _write(self, table: str) -> None:
        lines = self.lines[table]
        columns = list(dict.fromkeys(column for line in lines for column in line))
        with (self._folder / f"{table}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({column: _cell(value) for column, value in line.items()} for line in lines)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict) else value


def shown(line: Mapping[str, Any]) -> str:
    """A line of a table in one of text."""
    return "  ".join(f"{column} {_cell(value)}" for column, value in line.items() if value is not None)


def summary(tables: Tables) -> dict[str, Any]:
    """Per table what a reader asks first; every line stands in the files."""
    return {
        "facts": tables.facts,
        "correctness": _correctness(tables.lines["correctness"]),
        "bandwidth": _bandwidth(tables.lines["bandwidth"]),
        "steps": _steps(tables.lines["steps"]),
    }


def _correctness(lines: Sequence[Line]) -> dict[str, Any]:
    """How many checks held, the largest error in nats, and those that did not hold."""
    errors = [line["nats"] for line in lines if line.get("nats") is not None]
    failed = [f"{line['group']}, {line['check']}: {line['held']}" for line in lines if line["held"] != "yes"]
    return {"held": len(lines) - len(failed), "worst_nats": max(errors, default=None), "failed": failed}


def _bandwidth(lines: Sequence[Line]) -> dict[str, Any]:
    """Of every kind: medians over its cases of the share of the floor and of the copy, and how many times as fast as
    eager torch; and the cases of 64 rows and three members, in µs."""
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(line["kind"] for line in lines):
        own = [line for line in lines if line["kind"] == kind]
        ratios = ("of floor", "of copy", "over eager", "call over eager call")
        large = [line for line in own if (line.get("rows"), line.get("members")) == (64, 3)]
        published = {f"V={line['vocab']}": line["published"] for line in large if "published" in line}
        found[kind] = {
            "cases": len([line for line in own if "vocab" in line]),
            **{ratio: _median(line.get(ratio) for line in own) for ratio in ratios},
            "64 rows, 3 members, us": {f"V={line['vocab']}": line["motet us"] for line in large},
            **({"published": published} if published else {}),
            "failed": len([line for line in own if "failed" in line]),
        }
    return found


def _steps(lines: Sequence[Line]) -> dict[str, Any]:
    """Milliseconds and their ratio to the members' bare graphs (bare forwards where there are none), or why not."""
    found: dict[str, Any] = {}
    for line in lines:
        own = found.setdefault(f"{line['family']}, batch {line['batch']}", {})
        ratio = line.get("over bare graph") or line.get("over bare")
        own[line.get("variant", "all")] = line.get("failed") or [line["ms"], ratio]
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None
