"""`motet serve FILE`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from motet.cli.operator import Cache, File, Seed, load, operator_file
from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from motet.operator.file import Configuration

Host = Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")]
Port = Annotated[int | None, typer.Option(help="Port to listen on. [default: 8000]")]
ApiKey = Annotated[list[str] | None, typer.Option(help="A key that clients must send; may be repeated.")]
CorsOrigin = Annotated[
    list[str] | None, typer.Option(help="Origin of web pages whose scripts may ask, * for any; may be repeated.")
]
DeviceFlag = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda. [default: auto]")]
DtypeFlag = Annotated[str | None, typer.Option("--dtype", help="auto, float32, bfloat16 or float16. [default: auto]")]
KvCache = Annotated[float | None, typer.Option(help="GiB for keys and values. [default: 1]")]
MaxModelLen = Annotated[int | None, typer.Option(help="Upper bound on every model's context. [default: its own]")]
EngineFlag = Annotated[str | None, typer.Option("--engine", help="torch or vllm. [default: torch]")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error. [default: info]")]
LogFormat = Annotated[str | None, typer.Option(help="plain or json. [default: plain]")]


def serve(
    file: File,
    host: Host = None,
    port: Port = None,
    api_key: ApiKey = None,
    cors_origin: CorsOrigin = None,
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
        server={"host": host, "port": port, "api_keys": api_key or None, "cors_origins": cors_origin or None},
        engine={
            "kind": engine,
            "device": device,
            "dtype": dtype,
            "kv_cache_gib": kv_cache_gib,
            "max_model_len": max_model_len,
        },
        log={"level": log_level, "format": log_format},
    )
    configuration = load(operator_file(file, seed, cache), flags)
    from motet.server.http.logs import configure

    settings = configuration.settings
    configure(settings.log.level, as_json=settings.log.format == "json")
    _serve(configuration)


def _serve(configuration: Configuration) -> None:
    from motet.operator.access import Access, policy_warnings
    from motet.operator.file import ConfigError
    from motet.operator.port import bind, exposed, url
    from motet.operator.starting import answering
    from motet.operator.visible import begun_by_clients

    config, policies = configuration.settings.server, configuration.settings.policies
    try:
        port = bind(config)  # before anything slow is imported or loaded
        gives_away = policy_warnings(configuration.settings, configuration.compositions, configuration.gated)
        for warning in (*exposed(config), *gives_away):
            typer.echo(f"warning: {warning}", err=True)
        with answering(port):
            from motet.operator.loading import load_engine

            engine, registry = load_engine(configuration, lambda what: typer.echo(what, err=True))
        for warning in begun_by_clients(registry, policies):
            typer.echo(f"warning: {warning}", err=True)
    except ConfigError as error:
        refuse(error.problems)
    from motet.server.serve import serve as run
    from motet.server.service import Service

    typer.echo(f"serving {', '.join(registry.names)} at {url(config, port)}/v1", err=True)
    run(Service.assemble(config, engine, registry, Access.of(config, policies), configuration), port)


def _flags(**sections: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as the file would say them."""
    given = {
        section: {name: value for name, value in values.items() if value is not None}
        for section, values in sections.items()
    }
    return {section: values for section, values in given.items() if values}
