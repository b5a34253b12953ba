"""The command line: one file per group of commands. Arguments are parsed before torch is imported, so that help is
instant."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from motet import __version__
from motet.cli import data, demo, evaluation, experts, operator, serve
from motet.cli.audit import audit
from motet.cli.chat import chat
from motet.cli.training import train
from motet.environment import missing

os.environ.update(missing(os.environ))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

app = typer.Typer(
    help="Motet composes several language models at the logit level, behind an OpenAI-compatible API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(serve.serve)
app.command()(chat)
app.command()(operator.init)
app.command()(operator.models)
app.command()(demo.demo)
app.add_typer(operator.config_app, name="config")
app.add_typer(operator.vllm_app, name="vllm")
app.add_typer(experts.app, name="experts")
app.add_typer(data.app, name="data")
app.command()(audit)
app.add_typer(evaluation.app, name="eval")
app.command()(train)


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


def main() -> None:
    app()
