"""How an evaluation reports: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from motet.evaluation.run import Progress

PARTS = 10  # a line is due whenever another part of the requests is over
PATIENCE_S = 30.0  # and where nothing was said for so long


class Bar(Progress):
    """One bar over all requests."""

    def __init__(self, console: Console) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def note(self, what: str) -> None:
        self._bar.console.print(what, highlight=False, markup=False)

    def expect(self, count: int) -> None:
        self._bar.reset(self._task, total=count)

    def done(self) -> None:
        self._bar.advance(self._task)


class Lines(Progress):
    """A line for everything that begins, and for how far it is."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._total = self._done = 0
        self._began = self._said = clock()

    def tell(self, what: str) -> None:
        self._say(what)

    def note(self, what: str) -> None:
        self._say(what)

    def expect(self, count: int) -> None:
        self._total, self._began = count, self._clock()
        self._say(f"{count:,} requests in all")

    def done(self) -> None:
        self._done += 1
        total = max(self._total, 1)
        another = self._done * PARTS // total > (self._done - 1) * PARTS // total
        if another or self._clock() - self._said >= PATIENCE_S:
            self._say(f"{self._done:,} of {self._total:,} requests, {self._left()}")

    def _left(self) -> str:
        passed = self._clock() - self._began
        if self._done == self._total:
            return f"{passed:.0f} s"
        return f"about {passed / self._done * (self._total - self._done):.0f} s left"

    def _say(self, what: str) -> None:
        self._said = self._clock()
        self._console.print(what, highlight=False, markup=False, soft_wrap=True)
