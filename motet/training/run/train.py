"""A run from its recipe to its result: resumable, interruptible, exact."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from motet.training.loop import Step, TrainingDivergedError, finite
from motet.training.policies.requirements import plays_rounds
from motet.training.recipe import Recipe
from motet.training.run.checkpoint import CheckpointFolder, Position
from motet.training.run.errors import RunError
from motet.training.run.folder import TEACHER, Existing, RunFolder
from motet.training.run.metrics import Metrics, MetricsFile, Tensorboard
from motet.training.run.notes import notes
from motet.training.run.outcome import outcome
from motet.training.run.preparation import Preparation, prepare
from motet.training.run.result import card_problems, make_bundle, write_result
from motet.training.run.session import Session
from motet.training.run.signals import Interrupts
from motet.training.run.sources import resolve_root
from motet.training.run.tuning import merged
from motet.training.run.watch import Watch

Progress = Callable[[Metrics], None]
Tell = Callable[[str], None]


class Interrupted(Exception):
    """A signal ended the run after `step` steps; `checkpoint` is where it can go on."""

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted after step {step}; the checkpoint is {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint


def train(
    recipe: Recipe,
    recipe_folder: Path | None = None,
    *,
    root: Path | None = None,
    output: Path | None = None,
    existing: Existing = "refuse",
    progress: Progress = lambda metrics: None,
    tell: Tell = lambda line: None,
    report: Tell | None = None,
) -> Path:
    """Trains what a recipe says and writes the result.

    Killed at any moment and resumed, a run in float32 on a CPU ends in the same weights, bit by bit.

    Args:
        recipe: a valid one.
        recipe_folder: where relative paths start unless the recipe has a `root`; by default the working directory.
        root: overrides the recipe's root.
        output: overrides the recipe's output.
        existing: what to do with a run that the output folder already holds.
        progress: is given every report.
        tell: is given what the user should know: what is read, what may not be meant, what is resumed or skipped.
        report: is given what the end says, for which the model is measured before and after; None: no measuring.

    Returns:
        The folder of the result.

    Raises:
        RunError: the recipe, the data, the models or the output folder; a loss that is not finite; a full disk.
        Interrupted: SIGINT or SIGTERM.
    """
    output, recipe_folder = output or recipe.output, recipe_folder or Path.cwd()
    if recipe.objective.rounds_begin_as is not None:
        from motet.training.self_play import play

        root = root or resolve_root(recipe.root, recipe_folder)
        if plays_rounds(recipe, root):
            return play(
                recipe, recipe_folder, train, root=root, output=output, existing=existing, tell=tell, report=report,
                progress=progress,
            )  # fmt: skip
    prepared = check(recipe, recipe_folder, root=root, output=output, existing=existing)
    session = Session(recipe, root=root, output=output, preparation=prepared)
    folder = RunFolder(output, recipe, prepared.identity)
    folder.open(existing)
    for line in notes(prepared) if existing != "resume" else ():
        tell(line)
    try:
        _Run(session, folder, progress, tell, report).to_the_end(resume=existing == "resume")
    except OSError as error:
        raise RunError(f"output: {output}: {error.strerror or error}") from error
    finally:
        folder.close()
    del session, prepared
    gc.collect()  # trained models lie in cycles: a process that trains one after another would fill the memory
    return output


def check(
    recipe: Recipe, recipe_folder: Path, *, root: Path | None = None, output: Path, existing: Existing = "refuse"
) -> Preparation:
    """Everything that can be wrong before a model is loaded.

    Raises:
        RunError: all problems together.
    """
    prepared, problems = None, list[str]()
    try:
        prepared = prepare(recipe, recipe_folder, root)
    except RunError as error:
        problems += error.problems
    problems += card_problems(recipe)
    problems += RunFolder(output, recipe, prepared.identity if prepared else {}).problems(existing)
    if problems or prepared is None:
        raise RunError(problems)
    return prepared


class _Run:
    """The loop with everything around it."""

    def __init__(
        self, session: Session, folder: RunFolder, progress: Progress, tell: Tell, report: Tell | None
    ) -> None:
        self._session, self._folder, self._progress, self._tell = session, folder, progress, tell
        self._tell_end = report
        recipe = session.recipe
        self._checkpoints = CheckpointFolder(folder.path, recipe.checkpoints.keep, session.preparation.identity)
        self._steps = session.preparation.steps
        self._every = recipe.checkpoints.every

    def to_the_end(self, *, resume: bool) -> None:
        self._session.store_teacher(self._folder.path / TEACHER)
        position = self._resumed() if resume else Position(0)
        if position.step == 0:
            self._session.initialise()
        self._watch = None if self._tell_end is None else Watch(self._session, self._folder.path, position.step)
        if self._watch is not None and position.step == 0:
            self._watch.look(0)
        with ExitStack() as stack:
            self._open_logs(stack, position)
            interrupts = stack.enter_context(Interrupts())
            self._loop(position, interrupts)
        self._write()

    def _resumed(self) -> Position:
        """Reads the newest checkpoint that is whole; says which ones are not."""
        for path in self._checkpoints.all():
            problems = list(self._checkpoints.problems(path))
            if not problems:
                position = self._checkpoints.load(path, self._session.state)
                self._tell(f"resuming after step {position.step} of {self._steps} ({path})")
                self._warn_of_threads(self._checkpoints.threads(path))
                return position
            self._tell(f"skipped a checkpoint: {'; '.join(problems)}")
        self._tell("no checkpoint to resume from: beginning at step 1")
        return Position(0)

    def _warn_of_threads(self, before: int) -> None:
        now = torch.get_num_threads()
        if now != before:
            self._tell(
                f"the run had {before} threads and has {now} now: its last digits may differ (--threads {before})"
            )

    def _open_logs(self, stack: ExitStack, position: Position) -> None:
        self._metrics = MetricsFile(self._folder.path, position.metrics_bytes)
        stack.callback(self._metrics.close)
        self._writers = [self._metrics.write, self._progress]
        if self._session.recipe.logging.tensorboard:
            board = Tensorboard(self._folder.path, position.step)
            stack.callback(board.close)
            self._writers.insert(1, board.write)

    def _loop(self, position: Position, interrupts: Interrupts) -> None:
        self._clock = _Clock(position.seconds)
        try:
            for step in self._session.loop.steps(position.step, self._reports):
                if self._reports(step.done - 1):
                    self._report(step)
                if self._watch is not None and self._watch.wants(step.done):
                    self._watch.look(step.done, with_answer=False)
                if interrupts.received is not None and step.done < self._steps:
                    raise Interrupted(step.done, self._checkpoint(step))
                if self._every is not None and (step.done % self._every == 0 or step.done == self._steps):
                    self._checkpoint(step)
        except TrainingDivergedError as error:
            raise RunError(f"training diverged: {error}; a lower learning rate or clipping may help") from error
        except torch.OutOfMemoryError as error:
            raise RunError("out of GPU memory: fewer batch.rows at once (raise batch.accumulate) need less") from error

    def _reports(self, step: int) -> bool:
        return (step + 1) % self._session.recipe.logging.every == 0 or step + 1 == self._steps

    def _report(self, step: Step) -> None:
        metrics = Metrics(
            step=step.done,
            steps=self._steps,
            loss=finite(step.loss.item(), step.done),
            parts={name: value.item() for name, value in step.parts.items()},
            lr=step.rate,
            tokens_per_second=self._clock.rate(self._session.tokens),
            grad_norm=0.0 if step.norm is None else step.norm.item(),
            seconds=self._clock.seconds,
        )
        for write in self._writers:
            write(metrics)

    def _checkpoint(self, step: Step) -> Path:
        finite(step.loss.item(), step.done)
        position = Position(step.done, self._metrics.sync(), self._clock.seconds)
        return self._checkpoints.save(self._session.state, position)

    def _write(self) -> None:
        session, recipe, output = self._session, self._session.recipe, self._folder.path
        prepared = session.preparation
        told = self._watch is not None and self._tell_end is not None
        if self._watch is not None and told:
            self._watch.look(self._steps)  # before adapters are merged: references are the model without them
        calibration = session.calibrated()  # by the model that the head was trained on
        model = session.model if recipe.tuning.writes_adapter else merged(session.model)
        data = prepared.identity["data"]
        bundle = make_bundle(recipe, output, prepared.root, prepared.tokenizer, data, calibration)
        files = write_result(output, model, session.head, prepared.tokenizer, bundle, prepared.ends)
        self._folder.finish(files)
        if self._watch is not None and self._tell_end is not None:
            for line in outcome(recipe, prepared.root, output, files, self._watch.looks):
                self._tell_end(line)


class _Clock:
    """Training seconds over all resumptions, and tokens per second since the last question."""

    def __init__(self, before: float) -> None:
        self._start = self._last = time.monotonic()
        self._before, self._tokens = before, 0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def rate(self, tokens: int) -> float:
        now = time.monotonic()
        rate = (tokens - self._tokens) / max(now - self._last, 1e-9)
        self._last, self._tokens = now, tokens
        return rate


def written_names(prepared: Preparation) -> Iterator[str]:
    """Files that a run writes beside its result."""
    yield from ("metrics.jsonl", "recipe.yaml", "report.json", "run.json")
    if prepared.recipe.logging.tensorboard:
        yield "tensorboard/"
