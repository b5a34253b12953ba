"""A run's output folder: whose it is, and whether the run in it is finished."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, cast

import yaml

from motet.training.recipe import Recipe
from motet.training.run import checkpoint
from motet.training.run.checkpoint import write_json
from motet.training.run.errors import RunError
from motet.training.run.identity import changes, decisive
from motet.training.run.metrics import FILE as METRICS
from motet.training.run.outputs import unwritable, unwritten
from motet.training.run.result import ASIDE, result_names

MARK = "run.json"
RECIPE = "recipe.yaml"
LOCK = ".lock"
REPORT = "report.json"  # what the run was measured by
TEACHER = "teacher"  # a distillation's stored distributions
OWN = (METRICS, RECIPE, MARK, REPORT, TEACHER, "tensorboard", checkpoint.FOLDER)

# What shall happen to a run that the folder already holds: nothing (refuse), go on, or begin again.
Existing = Literal["refuse", "resume", "restart"]


class RunFolder:
    """Created or taken over by `open`, locked until `close`: two processes never write the same run.

    Args:
        path: the recipe's output.
        recipe: the whole recipe.
        identity: hashes of what decides the weights; empty where they are not known, to look for problems alone.
    """

    def __init__(self, path: Path, recipe: Recipe, identity: Mapping[str, str]) -> None:
        self.path = path
        self._recipe = recipe
        self._identity = dict(identity)
        self._lock: IO[str] | None = None

    def problems(self, existing: Existing) -> Iterator[str]:
        """Why the folder cannot be used; writes nothing."""
        if not self.path.exists():
            yield from unwritable(self.path)
            return
        if not self.path.is_dir():
            yield f"output: {self.path} is a file"
            return
        yield from unwritten(self.path)
        mark = self._mark()
        if mark is None:
            if any(item.name != LOCK for item in self.path.iterdir()):
                yield f"output: {self.path} holds files that are no run's; choose another folder"
        elif existing != "restart":
            yield from self._taken(mark, existing)

    def _taken(self, mark: Mapping[str, Any], existing: Existing) -> Iterator[str]:
        if mark["finished"]:
            yield f"output: {self.path} holds a finished run; --restart replaces it, or choose another output"
        elif self._identity and mark["identity"] != self._identity:
            yield (
                f"output: {self.path} holds an unfinished run that differs: {self._difference(mark['identity'])}; "
                "--restart replaces it, or choose another output"
            )
        elif existing == "refuse":
            yield f"output: {self.path} holds an unfinished run of this recipe: --resume goes on, --restart begins anew"

    def _difference(self, identity: Mapping[str, str]) -> str:
        if identity.get("recipe") == self._identity["recipe"]:
            different = (what for what in sorted(self._identity) if identity.get(what) != self._identity[what])
            return ", ".join(f"the content of the {what}" for what in different)
        before = yaml.safe_load((self.path / RECIPE).read_text("utf-8"))
        different = changes(decisive(Recipe.model_validate(before)), decisive(self._recipe))
        return "; ".join(different) or "its recipe"

    def _mark(self) -> dict[str, Any] | None:
        try:
            mark: Any = json.loads((self.path / MARK).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        known = isinstance(mark, dict) and {"identity", "finished", "files"} <= cast("dict[str, Any]", mark).keys()
        return cast("dict[str, Any]", mark) if known else None

    def open(self, existing: Existing) -> None:
        """Makes the folder this run's. With `restart` what an earlier run wrote is removed first.

        Raises:
            RunError: see `problems`; another process is training here; the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
            problems = list(self.problems(existing))
            if problems:
                raise RunError(problems)
            if existing == "restart":
                self._clear()
            for aborted in self.path.glob(f"{ASIDE}*"):
                shutil.rmtree(aborted)
            (self.path / RECIPE).write_text(recipe_yaml(self._recipe), encoding="utf-8")
            self._write_mark(finished=False, files=[])
        except OSError as error:
            raise RunError(f"output: {self.path} cannot be written: {error.strerror}") from error

    def _locked(self) -> IO[str]:
        lock = (self.path / LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(f"output: another process is training in {self.path}") from None
        return lock

    def _clear(self) -> None:
        mark = self._mark()
        if mark is None:
            return
        half_written = {name for adapter in (True, False) for name in result_names(adapter=adapter, head=True)}
        for name in (*mark["files"], *half_written, *OWN):
            item = self.path / Path(name).name
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)

    def finish(self, files: Sequence[str]) -> None:
        """Marks the run as finished and removes what only resuming needs; `files` are those of the result."""
        self._write_mark(finished=True, files=sorted(files))
        for name in (checkpoint.FOLDER, TEACHER):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _write_mark(self, *, finished: bool, files: Sequence[str]) -> None:
        write_json(self.path / MARK, {"identity": self._identity, "finished": finished, "files": list(files)})

    def close(self) -> None:
        """Gives the folder free."""
        if self._lock is not None:
            with suppress(OSError):
                (self.path / LOCK).unlink()
            self._lock.close()
            self._lock = None


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe with all its defaults, as `motet train` reads it."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
