"""What people see of a run."""

from __future__ import annotations

import io

from rich.console import Console

from motet.training.progress import Bars, Lines, for_console


def shown(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    progress = for_console(console)
    assert isinstance(progress, Bars if terminal else Lines)
    progress.start({"expert": 8})
    for step in range(1, 9):
        progress.update("expert", step, 4 / step, 12_345.6)
    progress.finish("expert", 3)
    progress.stop()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_shows_loss_rate_and_time_left() -> None:
    last = shown(terminal=True).splitlines()[-2]  # the very last one shows the cursor again
    for part in ("expert", "8/8", "loss 0.500", "12,346 tokens/s", "0:00:0"):
        assert part in last, part


def test_lines_tell_every_quarter() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "expert: 2/8 steps, loss 2.000, 12,346 tokens/s"
    assert lines[-1] == "expert: done in 3 s"
    assert len(lines) == 5


def test_a_rate_is_not_needed() -> None:
    console = Console(file=io.StringIO())
    lines = Lines(console)
    lines.start({"a": 1})
    lines.update("a", 1, 0.5)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "a: 1/1 steps, loss 0.500\n"
