"""How an evaluation says how far it is where nobody watches: true totals, and a line in time."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from motet.evaluation.progress import PATIENCE_S, Bar, Lines


def lines(total: int, seconds: float) -> list[str]:
    now = 0.0
    console = Console(file=StringIO(), width=40)
    progress = Lines(console, lambda: now)
    progress.tell("tofu")
    progress.expect(total)
    for _ in range(total):
        now += seconds
        progress.done()
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_for_every_tenth() -> None:
    said = lines(2000, 0.1)
    assert said[:3] == ["tofu", "2,000 requests in all", "200 of 2,000 requests, about 180 s left"]
    assert (len(said), said[-1]) == (12, "2,000 of 2,000 requests, 200 s")


@pytest.mark.parametrize(("seconds", "count"), [(PATIENCE_S / 6, 100 // 6), (PATIENCE_S, 100), (100.0, 100)])
def test_slow_answers_are_told_of_before_another_tenth_is_over(seconds: float, count: int) -> None:
    assert len(lines(100, seconds)) - 2 >= count


def test_a_bar_knows_the_total_before_the_first_answer() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with Bar(console) as bar:
        bar.tell("tofu")
        bar.expect(30)
        bar.done()
        bar.note("3 answers are taken over")
    assert isinstance(console.file, StringIO)
    assert "1/30" in console.file.getvalue()
    assert "3 answers are taken over" in console.file.getvalue()
