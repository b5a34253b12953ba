"""The table as a file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

TABLE = Path(__file__).parent.parent / "results" / "strategies.csv"
COLUMNS: tuple[str, ...] = (
    "strategy", "claim", "paper", "models", "measure", "claimed", "against", "value", "baseline", "n",
    "difference low", "difference high", "verdict", "command",
)  # fmt: skip


def write(file: Path, table: Sequence[Mapping[str, str]]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}")
    with aside.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    aside.replace(file)


def read(file: Path) -> list[dict[str, str]]:
    """A row per finding, by column."""
    with file.open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))
