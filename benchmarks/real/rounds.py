"""Rounds of figures, kept on disk: a run that is cut off goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Rounds:
    """Rounds that belong to one `key`; with another, those on disk are begun anew.

    Args:
        file: where they are kept.
        key: what they depend on, as JSON.
        wanted: how many there shall be.
    """

    def __init__(self, file: Path, key: object, wanted: int) -> None:
        self._file = file
        self._key = json.loads(json.dumps(key))
        kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        self.rows: list[dict[str, Any]] = kept["rounds"] if kept.get("key") == self._key else []
        self._wanted = wanted

    @property
    def missing(self) -> int:
        return max(0, self._wanted - len(self.rows))

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        self._file.write_text(json.dumps({"key": self._key, "rounds": self.rows}, indent=1) + "\n")
        print(f"round {len(self.rows)} of {self._wanted}", flush=True)
