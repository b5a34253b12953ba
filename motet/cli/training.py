"""`motet train`. Torch is imported only once the arguments are parsed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from motet.training.recipe import Recipe
    from motet.training.run.folder import Existing

PREVIEWED = 3  # records of each dataset

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a packaged recipe's name.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Dotted names and YAML values: optimizer.lr=1e-3.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, measure one step; write nothing.")]
Preview = Annotated[
    bool, typer.Option("--preview", help="Show N records (3 by default) as they are trained on; write nothing.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in the output folder.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace the run in the output folder.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of a step on a CPU. [default: torch's]")]


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    preview: Preview = False,
    resume: Resume = False,
    restart: Restart = False,
    threads: Threads = None,
) -> None:
    """Train what RECIPE says, with KEY=VALUE overrides on top."""
    if resume and restart:
        refuse(["--resume and --restart exclude each other"])
    changed, shown = _shown(overrides or [], preview)
    _environment(threads)
    existing: Existing = "resume" if resume else "restart" if restart else "refuse"
    with _failures(_again(recipe, changed, threads)):
        chosen, folder, root = _read(recipe, changed, existing)
        if shown:
            _preview(chosen, folder, root, shown)
        elif dry_run:
            _dry_run(chosen, folder, root, existing)
        else:
            _train(chosen, folder, root, existing)


def _read(name: str, overrides: list[str], existing: Existing) -> tuple[Recipe, Path, Path | None]:
    """The recipe, its folder and its root where that is a demo family; a faulty recipe is refused together with what
    is wrong with its data and models."""
    from motet.training.run.errors import RunError
    from motet.training.run.recipe_file import RecipeError, read_recipe
    from motet.training.run.train import check

    try:
        recipe, folder = read_recipe(name, overrides)
        return recipe, folder, _demo_root(recipe, folder)
    except RecipeError as error:
        problems = error.problems
        if error.rest is not None:
            recipe, folder = error.rest
            try:
                root = _demo_root(recipe, folder)
                check(recipe, folder, root=root, output=recipe.output, existing=existing)
            except RunError as others:
                problems = [*problems, *others.problems]
        raise RunError(problems) from error


def _demo_root(recipe: Recipe, folder: Path) -> Path | None:
    """The demo family that the recipe names as its root, built where it is missing; None for other roots."""
    from motet.demo.family import FamilyBuildError, build_family, seed_of
    from motet.training.run.errors import RunError

    seed = seed_of(recipe.root, folder)
    try:
        return None if seed is None else build_family(seed)
    except (FamilyBuildError, OSError) as error:
        raise RunError(f"root: the demo family cannot be built: {error}") from error


def _shown(arguments: list[str], preview: bool) -> tuple[list[str], int]:
    """The overrides, and how many records are previewed: `--preview 5` is a flag and a bare number."""
    if not preview:
        return arguments, 0
    numbers = [argument for argument in arguments if argument.isdecimal()]
    return [argument for argument in arguments if not argument.isdecimal()], int((numbers or [PREVIEWED])[0])


def _environment(threads: int | None) -> None:
    """Read by the libraries when they are imported: no telemetry, so many threads."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "1"
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)


def _train(recipe: Recipe, folder: Path, root: Path | None, existing: Existing) -> None:
    import time

    from motet.training.progress import for_console
    from motet.training.run.metrics import Metrics
    from motet.training.run.train import train as run

    name = recipe.name or recipe.output.name
    bars, started = for_console(), time.monotonic()
    begun = False
    said: list[str] = []  # behind the bars

    def show(metrics: Metrics) -> None:
        nonlocal begun
        if not begun:
            bars.start({name: metrics.steps})
            begun = True
        bars.update(name, metrics.step, metrics.loss, metrics.tokens_per_second)

    try:
        run(recipe, folder, root=root, existing=existing, progress=show, tell=_say, report=said.append)
        bars.finish(name, time.monotonic() - started)
    finally:
        if begun:
            bars.stop()
    for line in said:
        _say(line)
    typer.echo(str(recipe.output))


def _preview(recipe: Recipe, folder: Path, root: Path | None, count: int) -> None:
    from rich.console import Console

    from motet.training.data.histogram import histogram
    from motet.training.data.preview import preview
    from motet.training.run.preparation import prepare

    prepared = prepare(recipe, folder, root)
    preview(prepared.datasets, prepared.tokenizer, count, Console())
    for name, dataset in prepared.datasets.items():
        typer.echo(f"{name}\n{histogram(dataset.lengths)}")


def _dry_run(recipe: Recipe, folder: Path, root: Path | None, existing: Existing) -> None:
    from motet.training.run.dry_run import dry_run, report
    from motet.training.run.notes import notes
    from motet.training.run.train import check

    prepared = check(recipe, folder, root=root, output=recipe.output, existing=existing)
    for line in (*report(dry_run(prepared)), *(note for note in notes(prepared) if note.startswith("note"))):
        typer.echo(line)


@contextmanager
def _failures(again: str) -> Generator[None]:
    """Errors as lines and exit codes; whatever else happens is a defect and shows its traceback."""
    from motet.training.run.errors import RunError

    try:
        yield
    except RunError as error:
        refuse(error.problems)
    except KeyboardInterrupt:
        _say("interrupted; no step of this call is kept but what its checkpoints hold")
        raise typer.Exit(130) from None
    except Exception as error:
        from motet.training.run.train import Interrupted

        if not isinstance(error, Interrupted):
            raise
        _say(f"interrupted after step {error.step}, saved as {error.checkpoint}; go on with: {again}")
        raise typer.Exit(130) from None


def _again(recipe: str, overrides: list[str], threads: int | None) -> str:
    counted = [] if threads is None else ["--threads", str(threads)]
    return shlex.join(["motet", "train", recipe, *overrides, *counted, "--resume"])


def _say(line: str) -> None:
    typer.echo(line, err=True)
