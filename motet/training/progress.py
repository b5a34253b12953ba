"""How training reports: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class TrainingProgress(Protocol):
    """Told about every run by its name."""

    def note(self, what: str) -> None:
        """What should be known before the first run."""
        ...

    def start(self, steps: Mapping[str, int]) -> None:
        """All runs to come, with their numbers of steps."""
        ...

    def update(self, name: str, step: int, loss: float) -> None:
        """A run has done `step` steps."""
        ...

    def finish(self, name: str, seconds: float) -> None:
        """A run is done and its model saved."""
        ...

    def stop(self) -> None:
        """No more runs; called once, also after a failure."""
        ...


class Bars:
    """One bar per run, with its loss and the time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def note(self, what: str) -> None:
        """Above the bars."""
        self._progress.console.print(what, highlight=False, markup=False)

    def start(self, steps: Mapping[str, int]) -> None:
        """Shows all bars, none of them running."""
        for name, total in steps.items():
            self._tasks[name] = self._progress.add_task(name, total=total, start=False, loss="–", rate="")
        self._progress.start()

    def update(self, name: str, step: int, loss: float, rate: float | None = None) -> None:
        """Moves a bar; its clock starts with the first move. `rate` is in tokens per second."""
        self._progress.start_task(self._tasks[name])
        self._progress.update(self._tasks[name], completed=step, loss=f"{loss:.3f}", rate=_shown(rate))

    def finish(self, name: str, seconds: float) -> None:
        """Bars fill by themselves; nothing to add."""

    def stop(self) -> None:
        """Leaves the bars as they stand."""
        self._progress.stop()


class Lines:
    """A line for each quarter of a run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: Mapping[str, int] = {}
        self._quarter: dict[str, int] = {}

    def note(self, what: str) -> None:
        """Prints it."""
        self._console.print(what, highlight=False, markup=False, soft_wrap=True)

    def start(self, steps: Mapping[str, int]) -> None:
        """Remembers the totals."""
        self._steps = steps

    def update(self, name: str, step: int, loss: float, rate: float | None = None) -> None:
        """Prints when another quarter is done. `rate` is in tokens per second."""
        quarter = 4 * step // self._steps[name]
        if quarter > self._quarter.get(name, 0):
            self._quarter[name] = quarter
            told = [f"{step}/{self._steps[name]} steps", f"loss {loss:.3f}", *([_shown(rate)] if rate else [])]
            self._console.print(f"{name}: {', '.join(told)}", highlight=False)

    def finish(self, name: str, seconds: float) -> None:
        """Prints the time that it took."""
        self._console.print(f"{name}: done in {seconds:.0f} s", highlight=False)

    def stop(self) -> None:
        """Nothing is open."""


def _shown(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.0f} tokens/s"


def for_console(console: Console | None = None) -> Bars | Lines:
    """Bars where somebody watches, lines in a log; on standard error unless a console is given."""
    console = console or Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines(console)
