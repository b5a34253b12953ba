"""Results as files (JSON, Markdown, JSON lines) and as tables in a terminal."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from motet import __version__
from motet.evaluation.bench import Row
from motet.evaluation.run import Results
from motet.training.data.json_text import lines

SMALL = 1e-3  # below it, a value is written with an exponent: p-values


def shown(value: float | None) -> str:
    """Four digits; None, what can't be computed, is a dash."""
    if value is None:
        return "–"
    return f"{value:.2e}" if 0 < abs(value) < SMALL else f"{value:.4g}"


def columns(measures: Mapping[str, Row]) -> list[str]:
    """All measures' names, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in measures.values() for name in row))


def table(title: str, measures: Mapping[str, Row], first: str = "subject") -> Table:
    """One line per subject."""
    drawn = Table(title=title)
    drawn.add_column(first, overflow="fold", min_width=12)
    for name in columns(measures):
        drawn.add_column(name, justify="right", overflow="fold")
    for subject, row in measures.items():
        drawn.add_row(subject, *(shown(row.get(name)) if name in row else "" for name in columns(measures)))
    return drawn


def markdown(measures: Mapping[str, Row], first: str = "subject") -> str:
    """The same as a Markdown table."""
    names = columns(measures)
    lines = [[first, *names], ["---", *("---:" for _ in names)]]
    lines += [
        [subject, *(shown(row.get(name)) if name in row else "" for name in names)] for subject, row in measures.items()
    ]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def print_results(console: Console, results: Results) -> None:
    """A table per task."""
    for name, findings in results.findings.items():
        console.print(table(f"{results.recipe.title}: {name}", findings.measures))


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
