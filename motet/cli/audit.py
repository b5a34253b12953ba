"""`motet audit EXPERT`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Expert = Annotated[Path, typer.Argument(help="The expert's folder: a checkpoint or an adapter.", exists=True)]
Partner = Annotated[Path | None, typer.Option(help="What it was before. [default: what its expert.json names]")]
Prompts = Annotated[Path | None, typer.Option(help="One prompt per line, or JSONL. [default: a few general ones]")]
Out = Annotated[Path | None, typer.Option(help="Folder of the report. [default: EXPERT/audit]")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Reads = Annotated[Literal["same", "plain", "none"], typer.Option(help="What the partner reads of a prompt.")]
Samples = Annotated[int, typer.Option(min=1, max=4096, help="Contrastive samples of each form.")]
Rounds = Annotated[int, typer.Option(min=1, max=64, help="Rounds of the iterative form.")]
Tokens = Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of an answer or sample.")]
Lambda = Annotated[float, typer.Option("--lambda", min=0, max=100, help="Weight of the partner in the contrast.")]
Alpha = Annotated[float, typer.Option(min=0, max=1, help="Plausibility of the contrast's tokens; 0 is off.")]
Rate = Annotated[float, typer.Option("--lr", help="Learning rate of the partner's copy.")]
Refusals = Annotated[list[str] | None, typer.Option("--refusal", help="A pattern of a refusal; may be repeated.")]
Kept = Annotated[
    Path | None, typer.Option(help="Folder for the partner's copy that has learned what was found, to be served.")
]
Seed = Annotated[int, typer.Option(help="Of the samples.")]


def audit(
    expert: Expert,
    partner: Partner = None,
    prompts: Prompts = None,
    out: Out = None,
    device: Device = "auto",
    partner_reads: Reads = "same",
    samples: Samples = 16,
    rounds: Rounds = 4,
    max_tokens: Tokens = 48,
    weight: Lambda = 1.0,
    alpha: Alpha = 0.1,
    lr: Rate = 1e-4,
    refusal: Refusals = None,
    seed: Seed = 0,
    keep_partner: Kept = None,
) -> None:
    """What did this expert learn? Sets it against the model that it was before its training, and writes report.md
    and report.json."""
    from motet.audit.settings import AuditError, AuditSettings

    settings = AuditSettings(
        samples=samples,
        rounds=min(rounds, samples),
        max_tokens=max_tokens,
        weight=weight,
        mask=alpha or None,
        partner_reads=partner_reads,
        lr=lr,
        seed=seed,
        refusals=tuple(refusal or ()),
    )
    try:
        _run(expert, partner, prompts, out or expert / "audit", device, settings, keep_partner)
    except AuditError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        raise typer.Exit(1) from None


def _run(
    expert: Path,
    partner: Path | None,
    prompts: Path | None,
    out: Path,
    device: str,
    settings: Any,
    keep: Path | None,
) -> None:
    from transformers.utils.logging import disable_progress_bar

    from motet.audit.pair import check_empty, find_partner, load_pair
    from motet.audit.prompts import read_prompts
    from motet.audit.report import write_report
    from motet.audit.run import audit as run
    from motet.audit.settings import AuditError

    def log(what: str) -> None:
        typer.echo(what, err=True)

    disable_progress_bar()
    asked = read_prompts(prompts)
    if keep is not None:
        check_empty(keep)
    partner = partner or find_partner(expert)
    log(f"loading {expert} and {partner}")
    pair = load_pair(expert, partner, device)
    if pair.note:
        log(f"note: {partner} is not the partner that the bundle names: {pair.note}")
    kept = None if keep is None else pair.learner()
    result = run(pair, asked, settings, log, kept)
    if keep is not None and kept is not None:
        pair.keep(kept, keep)
        log(f"what the partner learned: {keep}")
    try:
        files = write_report(out, expert.resolve().name, partner.resolve().name, pair, result, settings)
    except OSError as error:
        raise AuditError([f"{out} cannot be written: {error}"]) from error
    typer.echo("\n".join(map(str, files)))
