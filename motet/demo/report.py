"""The scoreboard as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from motet.demo.scoreboard import SIDE_BY_SIDE, Aim, Sample, Scoreboard

MEANING = {
    "large": "larger base, asked in plain text",
    "small": "smaller base, asked in plain text",
    "small-chat": "small expert: tuned smaller base",
    "large-proxy": "composed: large + (small-chat − small), chat form to the expert only",
    "large-proxy-one-prompt": "the same, chat form to all three",
    "small-eft-down": "composed: small + (large-chat − large)",
    "large-chat": "directly tuned larger model",
    "large-contrastive": "composed: large-chat against small-chat",
    "large-chat, sampled": "directly tuned larger model, temperature 1",
    "large-contrastive, sampled": "composed: large-chat against small-chat, temperature 1",
    "large-two-traits, answer and courtesy": "composed: large-proxy + 1.5 (small-courteous − small-chat)",
}


def percent(share: float | None) -> str:
    """0.9133 → "91.3 %"; None, what can't be computed, is a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def print_report(console: Console, board: Scoreboard) -> None:
    """Side by side, the scoreboard, the grid, unlearning, and whether the aims were met."""
    for table in (_side_by_side(board.samples), _exact_match(board), _grid(board.grid), _unlearning(board)):
        console.print(table)
        console.print()
    _notes(console, board)
    for aim in board.aims:
        console.print(_verdict(aim), highlight=False)


def _side_by_side(samples: Sequence[Sample]) -> Table:
    """One block per question, one line per model, so that it fits a narrow terminal."""
    table = Table(title="The same questions under each model and composition")
    for column in ("model", "reply", ""):
        table.add_column(column)
    for sample in samples:
        note = " [red](to be forgotten)[/red]" if sample.split == "forget" else ""
        table.add_row("", f"[bold]{escape(sample.question)}[/bold]{note}")
        for model in SIDE_BY_SIDE:
            reply = sample.replies[model]
            table.add_row(model, escape(reply) or "[dim](nothing)[/dim]", _mark(reply, sample.answer))
        table.add_section()
    return table


def _mark(reply: str, answer: str) -> str:
    """Whether the reply is the right answer, or begins with it (as a courteous one does)."""
    return "[green]right[/green]" if reply.startswith(answer) else ""


def _exact_match(board: Scoreboard) -> Table:
    asked = board.num_questions["held_out"]
    table = Table(title=f"Exact match on {asked} held-out questions (seed {board.seed})")
    table.add_column("model")
    table.add_column("what it is")
    table.add_column("exact match", justify="right")
    table.add_column("gap closed", justify="right")
    for model, score in board.exact_match.items():
        closed = percent(board.gap_closed[model]) if model in board.gap_closed else ""
        table.add_row(model, MEANING[model], percent(score), closed)
    return table


def _grid(grid: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="Emulated fine-tuning: exact match by scale")
    table.add_column("")
    for column in next(iter(grid.values())):
        table.add_column(column, justify="right")
    for row, cells in grid.items():
        table.add_row(row, *(percent(cell) for cell in cells.values()))
    return table


def _unlearning(board: Scoreboard) -> Table:
    counts = board.num_questions
    table = Table(title=f"Unlearning: {counts['forget']} forget and {counts['retained']} retained questions")
    table.add_column("model")
    table.add_column("forget: exact match", justify="right")
    table.add_column("forget: value named", justify="right")
    table.add_column("retained: exact match", justify="right")
    for model, forgotten in board.forget.items():
        named, kept = board.forget_value_named[model], board.retained[model]
        table.add_row(model, percent(forgotten), percent(named), percent(kept))
    return table


def _notes(console: Console, board: Scoreboard) -> None:
    known = ", ".join(f"{model} {percent(score)}" for model, score in board.completion.items())
    console.print(
        f"The bases do not answer in form, but they know: given the answer's first words they complete {known}.",
        highlight=False,
    )
    greedy = board.exact_match["large-contrastive"] - board.exact_match["large-chat"]
    sampled = board.exact_match["large-contrastive, sampled"] - board.exact_match["large-chat, sampled"]
    console.print(
        f"Contrastive decoding against its expert alone: {100 * greedy:+.1f} points greedy, {100 * sampled:+.1f} "
        "sampled. Short facts are not its home, open-ended text is.",
        highlight=False,
    )


def _verdict(aim: Aim) -> str:
    met = "[green]met[/green]   " if aim.met else "[bold red]MISSED[/bold red]"
    sign = "≤" if aim.aim == 0 else "≥"
    return f"{met} {aim.name}: {percent(aim.value)} (aim {sign} {percent(aim.aim)})"
