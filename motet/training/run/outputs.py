"""Output folders that cannot be written: told before hours of work, not behind them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path


def output_problems(path: Path) -> Iterator[str]:
    """Of a folder that may or may not be there."""
    if path.is_dir():
        yield from unwritten(path)
    elif path.exists():
        yield f"output: {path} is a file"
    else:
        yield from unwritable(path)


def unwritable(path: Path) -> Iterator[str]:
    """Of a folder that is not there yet."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if existing.is_dir():
        yield from unwritten(existing)
    else:
        yield f"output: {existing} is a file"


def unwritten(folder: Path) -> Iterator[str]:
    """Tries it: permissions alone say nothing of read-only file systems, nor to root."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"motet")
    except OSError as error:
        yield f"output: {folder} is not writable: {error.strerror}"
