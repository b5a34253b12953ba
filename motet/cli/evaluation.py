"""`motet eval RECIPE.yaml name=value …`, `motet eval sweep …`, `motet eval merge …`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from rich.console import Console

    from motet.evaluation.run import Progress

R = TypeVar("R")
DEFAULT_COMMAND = "run"


class RecipeGroup(TyperGroup):
    """`motet eval RECIPE.yaml` is `motet eval run RECIPE.yaml`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and args[0] in self.commands
        return super().resolve_command(ctx, args if known else [DEFAULT_COMMAND, *args])


app = typer.Typer(
    cls=RecipeGroup,
    help="Evaluate compositions: `motet eval RECIPE.yaml name=value …`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe's file, or the name of a packaged one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="name=value: dotted names of the recipe, YAML values.")]
Cache = Annotated[Path | None, typer.Option(help="Where demo families are kept. [default: ~/.cache/motet]")]
Key = Annotated[str, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="Of a running server.")]


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, cache: Cache = None, api_key: Key = "none") -> None:
    """Run a recipe and write results.json, results.md and items.jsonl to its output folder. What was ended early goes
    on where it was: the same command again."""
    from motet.evaluation.report import print_results, write_results
    from motet.evaluation.run import evaluate

    _evaluate(recipe, overrides, evaluate, write_results, print_results, cache=cache, api_key=api_key)


@app.command()
def sweep(recipe: RecipeFile, overrides: Overrides = None, cache: Cache = None, api_key: Key = "none") -> None:
    """Run a recipe at every point of its `sweep`: table, Pareto front, CSV and figure. What was ended early goes on
    where it was: the same command again."""
    from motet.evaluation.sweep import evaluate_sweep
    from motet.evaluation.sweep_report import print_sweep, write_sweep

    _evaluate(recipe, overrides, evaluate_sweep, write_sweep, print_sweep, cache=cache, api_key=api_key)


def _evaluate(
    recipe: Path,
    overrides: list[str] | None,
    evaluate: Callable[..., R],
    write: Callable[[R], list[Path]],
    show: Callable[[Console, R], None],
    **options: Any,
) -> None:
    """Runs a recipe by `evaluate`, writes the files and shows the results."""
    from rich.console import Console

    from motet.evaluation.recipe import find_recipe, read_recipe
    from motet.evaluation.settings import RecipeError
    from motet.evaluation.unfinished import UNFINISHED
    from motet.training.run.outputs import output_problems

    console = Console()
    with refusals(), watched() as progress:
        file = find_recipe(recipe)
        chosen = read_recipe(file, overrides or [])
        if problems := list(output_problems(chosen.output)):
            raise RecipeError(problems)
        unfinished = chosen.output / UNFINISHED
        results = evaluate(chosen, file.resolve().parent, progress, unfinished=unfinished, **options)
        files = write(results)
        unfinished.unlink()
    show(console, results)
    console.print("written: " + ", ".join(map(str, files)), highlight=False)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="Where the merged model is written.")],
    base: Annotated[Path, typer.Option(help="The model folder that is moved.")],
    add: Annotated[list[str], typer.Option(help="FOLDER=WEIGHT: so much of the way to this model; may be repeated.")],
    reference: Annotated[Path | None, typer.Option(help="What the way begins at. [default: the base]")] = None,
) -> None:
    """Write a folder with merged weights: base + Σ weight · (model − reference)."""
    from motet.evaluation.merge import write_merge

    with refusals():
        write_merge(folder, base, dict(_weighted(text) for text in add), reference)
    typer.echo(f"{folder}")


def _weighted(text: str) -> tuple[Path, float]:
    from motet.evaluation.settings import RecipeError

    path, _, weight = text.rpartition("=")
    try:
        return Path(path), float(weight)
    except ValueError as error:
        raise RecipeError([f"--add {text}: write FOLDER=WEIGHT."]) from error


@contextmanager
def refusals() -> Generator[None]:
    """Problems as lines on standard error, and status 1."""
    from motet.evaluation.settings import RecipeError

    try:
        yield
    except RecipeError as error:
        refuse(error.problems)
    except OSError as error:
        refuse([f"{error.filename}: {error.strerror}"])


@contextmanager
def watched() -> Generator[Progress]:
    """A bar of requests where somebody watches, lines elsewhere; both on standard error."""
    from rich.console import Console

    from motet.evaluation.progress import Bar, Lines

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    with Bar(console) as bar:
        yield bar
