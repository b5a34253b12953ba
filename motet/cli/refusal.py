"""How every command refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import typer


def refuse(problems: Iterable[str]) -> NoReturn:
    """Prints everything that is wrong, one line each, and leaves with exit code 1."""
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
