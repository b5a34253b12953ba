"""Results as files (JSON, Markdown, JSON lines) and as tables in a terminal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from motet import __version__
from motet.evaluation.bench import Row
from motet.evaluation.run import Results
from motet.training.data.json_text import lines

MIN_SUBJECT = 12  # characters of a subject's name in a line, where numbers leave no more
BORDER = 3  # a column's line and blanks; a table has one line more
SMALL = 1e-3  # below it, a value is written with an exponent: p-values


def shown(value: float | None) -> str:
    """Four digits; None, what can't be computed, is a dash."""
    if value is None:
        return "–"
    return f"{value:.2e}" if 0 < abs(value) < SMALL else f"{value:.4g}"


def columns(measures: Mapping[str, Row]) -> list[str]:
    """All measures' names, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in measures.values() for name in row))


def tables(title: str, measures: Mapping[str, Row], width: int, first: str = "subject") -> list[Table]:
    """One line per subject; several tables where the measures are too many for a screen of `width` characters, so that
    every number is whole."""
    of = {name: [shown(row[name]) if name in row else "" for row in measures.values()] for name in columns(measures)}
    longest = max(map(len, (first, *measures)))
    widths = {name: _width(name, column) for name, column in of.items()}
    left = min(longest, max(MIN_SUBJECT, width - BORDER - 1 - max(widths.values(), default=0)))
    drawn: list[Table] = []
    for names in _parts(widths, width - left - BORDER - 1):
        part = Table(title=title if not drawn else f"{title}, continued")
        part.add_column(first, overflow="fold", width=left)
        for name in names:
            part.add_column(name, justify="right", overflow="fold", width=widths[name] - BORDER)
        for i, subject in enumerate(measures):
            part.add_row(subject, *(of[name][i] for name in names))
        drawn.append(part)
    return drawn


def _width(name: str, values: Sequence[str]) -> int:
    """What a column takes: its longest number, or word of its name."""
    return max(map(len, [*values, *name.split()])) + BORDER


def _parts(widths: Mapping[str, int], room: int) -> Iterator[list[str]]:
    """The columns in order, as many together as there is room for, one at least."""
    part: list[str] = []
    for name, width in widths.items():
        if part and sum(widths[other] for other in part) + width > room:
            yield part
            part = []
        part = [*part, name]
    yield part


def markdown(measures: Mapping[str, Row], first: str = "subject") -> str:
    """The same as a Markdown table."""
    names = columns(measures)
    lines = [[first, *names], ["---", *("---:" for _ in names)]]
    lines += [
        [subject, *(shown(row.get(name)) if name in row else "" for name in names)] for subject, row in measures.items()
    ]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def print_results(console: Console, results: Results) -> None:
    """The tables of each task."""
    for name, findings in results.findings.items():
        for part in tables(f"{results.recipe.title}: {name}", findings.measures, console.width):
            console.print(part)


def write_results(results: Results) -> list[Path]:
    """`results.json`, `results.md` and `items.jsonl` in the recipe's output folder; their paths.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = results.recipe.output
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "results.json": json.dumps(as_json(results), indent=1, ensure_ascii=False) + "\n",
        "results.md": _document(results),
        "items.jsonl": "".join(lines(_records(results))),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def as_json(results: Results) -> dict[str, Any]:
    """Everything but the items, with versions and the machine."""
    return {
        "recipe": results.recipe.model_dump(mode="json", exclude_defaults=True),
        "measures": {name: findings.measures for name, findings in results.findings.items()},
        "seconds": round(results.seconds, 1),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "motet": __version__,
            **{name: version(name) for name in ("torch", "transformers", "openai", "scipy", "rouge-score")},
        },
    }


def _document(results: Results) -> str:
    parts = [f"# {results.recipe.title}\n"]
    parts += [f"## {name}\n\n{markdown(findings.measures)}" for name, findings in results.findings.items()]
    return "\n".join(parts)


def _records(results: Results) -> Sequence[Mapping[str, Any]]:
    return [{"task": name, **record} for name, findings in results.findings.items() for record in findings.items]
