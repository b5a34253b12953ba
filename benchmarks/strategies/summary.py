"""The committed table in words, for the documentation: one entry per strategy."""

from __future__ import annotations

from benchmarks.strategies.file import TABLE, read

WEIGHT = {"shown": "shown", "not shown": "**not shown**", "miss": "**miss**", "not measured": "*not measured*"}


def _line(row: dict[str, str]) -> str:
    if row["verdict"] == "not measured":
        return f"{row['models']}: {WEIGHT[row['verdict']]}, {row['claim']}"
    claimed = "" if row["claimed"] in ("more", "less", "") else f", {row['claimed']}"
    interval = f"{row['difference low']} – {row['difference high']}".replace("-", "−")
    figures = f"{row['value']} against {row['baseline']} of {row['against']} ({interval}{claimed}; n = {row['n']})"
    return f"{row['claim']} ({row['models']}): {row['measure']} {figures}: {WEIGHT[row['verdict']]}"


def _entries() -> dict[str, str]:
    entries: dict[str, list[str]] = {}
    for row in read(TABLE) if TABLE.is_file() else []:
        entries.setdefault(row["strategy"], []).append(_line(row))
    return {strategy: "<br>".join(lines) for strategy, lines in entries.items()}


FOUND: dict[str, str] = _entries()
