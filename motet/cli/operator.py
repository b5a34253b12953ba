"""What concerns the operator's file without serving it: `motet init`, `motet models`, `motet config …`, `motet vllm
export`."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from motet.operator.file import Configuration
    from motet.operator.registry import Registry

DEMO = "demo"

config_app = typer.Typer(help="Check or show the effective configuration.", no_args_is_help=True)
vllm_app = typer.Typer(help="The scale-out engine.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The operator's YAML file, or `demo` for the demo family.")]
Seed = Annotated[int, typer.Option(help="Seed of the demo family.")]
Cache = Annotated[Path | None, typer.Option(help="Where demo families are kept. [default: ~/.cache/motet]")]


def models(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """List the models of FILE with their sizes, and the compositions that use them."""
    from motet.operator.file import ConfigError
    from motet.operator.listing import print_models

    try:
        unread = print_models(load(operator_file(file, seed, cache), {}))
    except ConfigError as error:
        refuse(error.problems)
    if unread:
        refuse(unread)


def init(
    places: Annotated[list[Path], typer.Argument(help="Model folders, GGUF files, or folders that hold some.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("models.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented operator's file for the models in PLACES, with the compositions that fit them."""
    from motet.operator.file import ConfigError
    from motet.operator.scaffold import scaffold

    if out.exists() and not force:
        refuse([f"{out} exists: name another file with --out, or write over it with --force."])
    try:
        found = scaffold(places, out.absolute().parent)
        out.write_text(found.text(), encoding="utf-8")
        load(out, {})  # what was written can be served
    except ConfigError as error:
        refuse(error.problems)
    except OSError as error:
        refuse([f"{error.filename or out}: {error.strerror}"])
    for problem in found.left_out:
        typer.echo(f"left out: {problem}", err=True)
    models, compositions = _count(found.models, "model"), _count(found.compositions, "composition")
    typer.echo(f"{out}: {models} and {compositions}. Next: motet serve {out}, or motet chat {out}")


def _count(named: Sized, what: str) -> str:
    return f"{len(named)} {what}" + ("" if len(named) == 1 else "s")


@vllm_app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Write FILE's models as one composite per family that vLLM's own server serves; prints the commands."""
    from motet.operator.export import export as write
    from motet.operator.file import ConfigError

    try:
        for command in write(load(operator_file(file, seed, cache), {}), out):
            typer.echo(command)
    except ConfigError as error:
        refuse(error.problems)


@config_app.command()
def validate(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """Report everything that is wrong with FILE, its models and the environment; reads no weights."""
    from motet.operator.access import policy_warnings
    from motet.operator.file import ConfigError
    from motet.operator.port import exposed
    from motet.operator.visible import begun_by_clients

    configuration = load(operator_file(file, seed, cache), {})
    settings = configuration.settings
    try:
        registry, warnings = _preflight(configuration)
    except ConfigError as error:
        refuse(error.problems)
    of_policies = policy_warnings(settings, configuration.compositions, configuration.gated)
    begun = begun_by_clients(registry, settings.policies)
    for warning in (*exposed(settings.server), *of_policies, *begun, *warnings):
        typer.echo(f"warning: {warning}", err=True)
    models, compositions = _count(settings.models, "model"), _count(settings.compositions, "composition")
    typer.echo(f"{file}: {models} and {compositions}, no problems.")


def _preflight(configuration: Configuration) -> tuple[Registry, list[str]]:
    """Everything that can be known before weights are read, and warnings. Raises ConfigError."""
    if configuration.settings.engine.kind == "vllm":
        from motet.operator.loading_vllm import check_vllm

        return check_vllm(configuration), []
    from motet.operator.preflight import prepare

    prepared = prepare(configuration)
    return prepared.registry, prepared.warnings


@config_app.command()
def show(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """Print every effective setting and where it came from; secrets are masked."""
    from motet.operator.listing import print_origins

    print_origins(load(operator_file(file, seed, cache), {}))


def operator_file(file: Path, seed: int, cache: Path | None) -> Path:
    """`demo` is the cached demo family's file; the family is built where it is missing."""
    if str(file) != DEMO or file.is_file():
        return file
    from motet.cache import default_cache
    from motet.demo.family import FamilyBuildError, build_family

    try:
        return build_family(seed, cache) / "models.yaml"
    except FamilyBuildError as error:
        refuse([str(error)])
    except OSError as error:  # a folder that is read-only, full or none
        refuse([f"the demo family cannot be written: {error.filename or cache or default_cache()}: {error.strerror}"])


def load(file: Path, flags: dict[str, Any]) -> Configuration:
    from motet.operator.file import ConfigError
    from motet.operator.file import load as read

    try:
        return read(file, flags)
    except ConfigError as error:
        refuse(error.problems)
