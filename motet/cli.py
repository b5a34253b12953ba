"""The command line. Arguments are parsed before torch is imported, so that help is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from motet import __version__
from motet.audit.cli import audit
from motet.evaluation import cli as evaluation
from motet.experts_cli import app as experts_app
from motet.openmp import missing
from motet.training.data import cli as data
from motet.training.run import cli as training

if TYPE_CHECKING:
    from motet.server.operator_file import Configuration

os.environ.update(missing(os.environ))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DEMO = "demo"

app = typer.Typer(
    help="Motet composes several language models at the logit level, behind an OpenAI-compatible API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Check or show the effective configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
vllm_app = typer.Typer(help="The scale-out engine.", no_args_is_help=True)
app.add_typer(vllm_app, name="vllm")
app.add_typer(experts_app, name="experts")
app.add_typer(data.app, name="data")
app.command()(audit)
app.add_typer(evaluation.app, name="eval")
app.command()(training.train)

File = Annotated[Path, typer.Argument(help="The operator's YAML file, or `demo` for the demo family.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")]
ApiKey = Annotated[list[str] | None, typer.Option(help="A key that clients must send; may be repeated.")]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda. [default: auto]")]
DtypeFlag = Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16. [default: auto]")]
KvCache = Annotated[float | None, typer.Option(help="GiB for keys and values. [default: 1]")]
MaxModelLen = Annotated[int | None, typer.Option(help="Upper bound on every model's context. [default: its own]")]
EngineFlag = Annotated[str | None, typer.Option("--engine", help="torch or vllm. [default: torch]")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")]
LogFormat = Annotated[str | None, typer.Option(help="plain or json. [default: plain]")]
Seed = Annotated[int, typer.Option(help="Seed of the demo family.")]
Cache = Annotated[Path | None, typer.Option(help="Where demo families are kept. [default: ~/.cache/motet]")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"motet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before any command."""


@app.command()
def serve(
    file: File,
    host: Host = None,
    port: Port = None,
    api_key: ApiKey = None,
    engine: EngineFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    kv_cache_gib: KvCache = None,
    max_model_len: MaxModelLen = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Serve the models and compositions of FILE. Flags go over environment variables (MOTET_SERVER__PORT), those
    over the file."""
    flags = _flags(
        server={"host": host, "port": port, "api_keys": api_key or None},
        engine={
            "kind": engine,
            "device": device,
            "dtype": dtype,
            "kv_cache_gib": kv_cache_gib,
            "max_model_len": max_model_len,
        },
        log={"level": log_level, "format": log_format},
    )
    configuration = _load(_operator_file(file, seed, cache), flags)
    from motet.server.logs import configure

    settings = configuration.settings
    configure(settings.log.level, as_json=settings.log.format == "json")
    _serve(configuration)


def _serve(configuration: Configuration) -> None:
    from motet.server.operator_file import ConfigError
    from motet.server.port import bind, url

    config = configuration.settings.server
    try:
        port = bind(config)  # before anything slow is imported or loaded
        from motet.server.loading import load_engine

        engine, registry = load_engine(configuration, lambda what: typer.echo(what, err=True))
    except ConfigError as error:
        _refuse(error.problems)
    from motet.server.serve import serve as run
    from motet.server.service import Service

    typer.echo(f"serving {', '.join(registry.names)} at {url(config, port)}/v1", err=True)
    run(Service.assemble(config, engine, registry), port)


@app.command()
def models(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """List the models of FILE with their sizes, and the compositions that use them."""
    from motet.server.listing import print_models
    from motet.server.operator_file import ConfigError

    try:
        unread = print_models(_load(_operator_file(file, seed, cache), {}))
    except ConfigError as error:
        _refuse(error.problems)
    if unread:
        _refuse(unread)


@vllm_app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    seed: Seed = 0,
    cache: Cache = None,
) -> None:
    """Write FILE's models as one composite per family that vLLM's own server serves; prints the commands."""
    from motet.server.operator_file import ConfigError
    from motet.server.vllm_export import export as write

    try:
        for command in write(_load(_operator_file(file, seed, cache), {}), out):
            typer.echo(command)
    except ConfigError as error:
        _refuse(error.problems)


@config_app.command()
def validate(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """Report everything that is wrong with FILE, its models and the environment; reads no weights."""
    from motet.server.operator_file import ConfigError

    configuration = _load(_operator_file(file, seed, cache), {})
    settings = configuration.settings
    try:
        warnings = _preflight(configuration)
    except ConfigError as error:
        _refuse(error.problems)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{file}: {len(settings.models)} models and {len(settings.compositions)} compositions, no problems.")


def _preflight(configuration: Configuration) -> list[str]:
    """Everything that can be known before weights are read; returns warnings. Raises ConfigError."""
    if configuration.settings.engine.kind == "vllm":
        from motet.server.loading_vllm import check_vllm

        check_vllm(configuration)
        return []
    from motet.server.preflight import prepare

    return prepare(configuration).warnings


@config_app.command()
def show(file: File, seed: Seed = 0, cache: Cache = None) -> None:
    """Print every effective setting and where it came from; secrets are masked."""
    from motet.server.listing import print_origins

    print_origins(_load(_operator_file(file, seed, cache), {}))


@app.command()
def demo(
    seed: Seed = 0,
    cache: Cache = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result to this file.")] = None,
    limit: Annotated[int, typer.Option(help="Questions per row, at most.")] = 200,
) -> None:
    """Build the demo family, serve it, ask it over HTTP, and print what composition does."""
    from motet.demo import ServerFailedError, run_demo
    from motet.training.demo.family import FamilyBuildError

    try:
        run_demo(seed, cache, json_file, limit=limit)
    except (FamilyBuildError, ServerFailedError) as error:
        _refuse([str(error)])


def _flags(**sections: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as the file would say them."""
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in sections.items()
    }
    return {section: values for section, values in given.items() if values}


def _operator_file(file: Path, seed: int, cache: Path | None) -> Path:
    """`demo` is the cached demo family's file; the family is built where it is missing."""
    if str(file) != DEMO or file.is_file():
        return file
    from motet.training.demo.family import FamilyBuildError, build_family

    try:
        return build_family(seed, cache) / "models.yaml"
    except FamilyBuildError as error:
        _refuse([str(error)])


def _load(file: Path, flags: dict[str, Any]) -> Configuration:
    from motet.server.operator_file import ConfigError, load

    try:
        return load(file, flags)
    except ConfigError as error:
        _refuse(error.problems)


def _refuse(problems: list[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
