"""How an evaluation reports: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from motet.evaluation.run import Progress


class Bar(Progress):
    """One bar over all requests that are known so far."""

    def __init__(self) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("starting", total=0)
        self._total = 0

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def expect(self, count: int) -> None:
        self._total += count
        self._bar.update(self._task, total=self._total)

    def done(self) -> None:
        self._bar.advance(self._task)


class Lines(Progress):
    """A line for everything that begins."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def tell(self, what: str) -> None:
        self._console.print(what, highlight=False)
