"""`motet demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motet.cli.operator import Cache, Seed
from motet.cli.refusal import refuse


def demo(
    seed: Seed = 0,
    cache: Cache = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    limit: Annotated[int, typer.Option(help="Questions per row, at most.")] = 200,
) -> None:
    """Build the demo family, serve it, ask it over HTTP, and print what composition does."""
    from motet.demo.family import FamilyBuildError
    from motet.demo.run import ServerFailedError, run_demo

    try:
        run_demo(seed, cache, json_file, limit=limit)
    except (FamilyBuildError, ServerFailedError) as error:
        refuse([str(error)])
