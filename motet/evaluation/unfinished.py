"""Answers of an evaluation that is not over yet, in a file: what was ended early goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from motet.experts.fingerprints import content_hash

UNFINISHED = "unfinished.jsonl"  # beside the results, which take its place


class Answers:
    """What was asked and answered, a line each, by the digest of the request. Those of an earlier run are taken over
    where `models` says the same as then: what is known of the models that answer."""

    def __init__(self, file: Path, models: Any) -> None:
        self._digest = content_hash(models)
        self._earlier = _read(file, self._digest)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("w", encoding="utf-8")
        self._write({"models": self._digest})
        for request, answer in self._earlier.items():
            self._write({"request": request, "answer": answer})
        self._file.flush()

    @property
    def taken_over(self) -> int:
        """How many answers were taken over."""
        return len(self._earlier)

    def find(self, request: Any) -> dict[str, Any] | None:
        """The answer of an earlier run."""
        return self._earlier.get(content_hash(request))

    def keep(self, request: Any, answer: Mapping[str, Any]) -> None:
        """On disk at once: whoever is killed loses nothing."""
        self._write({"request": content_hash(request), "answer": answer})
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _read(file: Path, models: str) -> dict[str, dict[str, Any]]:
    """The answers of the same models; a run that was killed may leave half a line."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", errors="replace") as lines:
        if not _is_of(lines, models):
            return {}
        whole = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {line["request"]: line["answer"] for line in whole}


def _is_of(lines: IO[str], models: str) -> bool:
    first = lines.readline()
    return first.endswith("}\n") and json.loads(first).get("models") == models
