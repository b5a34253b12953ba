"""`motet experts`: what bundles say, and whether it is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from motet.cli.refusal import refuse

if TYPE_CHECKING:
    from motet.experts.bundle import ExpertBundle
    from motet.experts.check import Findings

PIPE_WIDTH = 300
HEADINGS = ("name", "role", "strategy", "weight", "partner", "family", "objective", "folder")

app = typer.Typer(help="List, show or check expert bundles (folders with an expert.json).", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The expert's folder.", exists=True, file_okay=False)]


@app.command("list")
def list_experts(
    folders: Annotated[
        list[Path], typer.Argument(help="Where to look; folders below are searched too.", exists=True, file_okay=False)
    ],
) -> None:
    """One row per expert found. Bundles that cannot be read are reported, and make the exit code 1."""
    from motet.experts.bundle import BUNDLE, BundleError, read_bundle

    found = {file.parent: file for folder in folders for file in sorted(folder.rglob(BUNDLE))}
    rows: list[tuple[str, ...]] = []
    problems: list[str] = []
    for folder in found:
        try:
            bundle = read_bundle(folder)
        except BundleError as error:
            problems += error.problems
            continue
        if bundle is not None:
            rows.append(_row(folder, bundle))
    _print_table(rows)
    if problems:
        refuse(problems)


def _row(folder: Path, bundle: ExpertBundle) -> tuple[str, ...]:
    low, high = bundle.weight_range or (None, None)
    span = "" if low is None else f" ({low} … {high})"
    weight = "" if bundle.weight is None else str(bundle.weight)
    partner = bundle.partner.path if bundle.partner else ""
    family = bundle.base_family or ""
    about = (bundle.name, bundle.role, bundle.strategy or "", weight + span, partner, family, bundle.objective)
    return (*about, str(folder))


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADINGS, show_edge=False, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH  # into a file or pipe nothing is cut off
    console.print(table)


@app.command()
def show(folder: Folder) -> None:
    """Print everything that FOLDER's expert.json says, as JSON."""
    from motet.experts.bundle import BundleError, read_bundle

    try:
        bundle = read_bundle(folder)
    except BundleError as error:
        refuse(error.problems)
    if bundle is None:
        refuse([f"{folder} has no expert.json"])
    typer.echo(json.dumps(bundle.model_dump(mode="json"), indent=2, ensure_ascii=False))


@app.command()
def check(
    folder: Folder,
    against: Annotated[Path | None, typer.Option(help="An operator's file whose models it shall fit.")] = None,
) -> None:
    """Verify files, weights, tokenizer, base and partner; with --against also the models of an operator's file. The
    exit code is 1 where there are problems; all of them are printed."""
    from motet.experts.check import check_bundle

    bundle, findings = check_bundle(folder)
    if bundle is not None and against is not None:
        more = _against(folder, bundle, against)
        findings.problems += more.problems
        findings.notes += more.notes
    for note in findings.notes:
        typer.echo(f"note: {note}", err=True)
    if bundle is None or findings.problems:
        refuse(findings.problems)
    typer.echo(f"{folder}: {bundle.name} ({bundle.role}), {len(bundle.files)} files, no problems.")


def _against(folder: Path, bundle: ExpertBundle, file: Path) -> Findings:
    from motet.experts.check import Findings
    from motet.operator.expert_check import check_against
    from motet.operator.file import ConfigError, load

    try:
        return check_against(folder, bundle, load(file))
    except ConfigError as error:
        return Findings(problems=error.problems)
