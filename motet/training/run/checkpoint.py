"""Checkpoints: written aside, sealed by hashes, renamed; read back only when every byte is as it was written."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from motet.experts.fingerprints import file_hash
from motet.training.run.errors import RunError

FORMAT = 1
FOLDER, MANIFEST, WEIGHTS, STATE = "checkpoints", "manifest.json", "trained.safetensors", "state.pt"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: steps done, bytes of `metrics.jsonl` that belong to them, seconds of training so far."""

    step: int
    metrics_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """What a step changes: trained parameters by name, optimisers. Random generators are torch's and Python's own."""

    parameters: Mapping[str, nn.Parameter]
    optimizers: Sequence[torch.optim.Optimizer]


class CheckpointError(RunError):
    """A checkpoint cannot be written, or is not what was written."""


class CheckpointFolder:
    """The checkpoints of one output folder, `checkpoints/step-00000030` and so on.

    Args:
        output: the run's folder.
        keep: how many are kept.
        identity: hashes that a checkpoint belongs to (recipe, data).
    """

    def __init__(self, output: Path, keep: int, identity: Mapping[str, str]) -> None:
        self.folder = output / FOLDER
        self._keep = keep
        self._identity = dict(identity)

    def all(self) -> list[Path]:
        """Complete or not, the newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def save(self, state: State, position: Position) -> Path:
        """Writes a checkpoint; the older ones beyond `keep` are removed afterwards.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written; older checkpoints are untouched.
        """
        target = self.folder / f"step-{position.step:08d}"
        aside: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
            self._fill(aside, state, position)
            if target.exists():
                shutil.rmtree(target)
            aside.rename(target)
            sync(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(self._unwritten(position.step, error)) from error
        self._prune()
        return target

    def _unwritten(self, step: int, error: Exception) -> str:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        last = next((f"; the last good one is {path}" for path in self.all()), "; there is no earlier one")
        return f"{self.folder}: the checkpoint of step {step} cannot be written: {reason}{last}"

    def _fill(self, folder: Path, state: State, position: Position) -> None:
        tensors = {name: parameter.detach().contiguous() for name, parameter in state.parameters.items()}
        safetensors.save_file(tensors, folder / WEIGHTS)
        with (folder / STATE).open("wb") as file:
            torch.save(_volatile(state), file)
        files = {name: {"sha256": file_hash(folder / name), "bytes": (folder / name).stat().st_size} for name in FILES}
        for name in FILES:
            sync(folder / name)
        manifest = {"format": FORMAT, **asdict(position), "identity": self._identity, "files": files}
        manifest["threads"] = torch.get_num_threads()
        write_json(folder / MANIFEST, manifest)
        sync(folder)

    def _prune(self) -> None:
        for old in self.all()[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)
        for aborted in self.folder.glob(".writing-*"):
            shutil.rmtree(aborted, ignore_errors=True)

    def problems(self, path: Path) -> Iterator[str]:
        """Why a checkpoint cannot be used; nothing where it is whole and belongs to this run."""
        try:
            manifest = json.loads((path / MANIFEST).read_text("utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            identity = cast("dict[str, str]", manifest["identity"])
            missing = set(FILES) - set(files) or NUMBERS - set(manifest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"{path / MANIFEST} is not readable: {error}"
            return
        if manifest["format"] != FORMAT or missing:
            yield f"{path / MANIFEST} is of another format"
            return
        for name, file in files.items():
            yield from _file_problems(path / name, file["sha256"], file["bytes"])
        yield from (
            f"{path}: the {what} is not the one that this checkpoint was made with"
            for what, value in self._identity.items()
            if identity.get(what) != value
        )

    @staticmethod
    def threads(path: Path) -> int:
        """The number of threads that the run computed with: another one rounds sums otherwise."""
        return int(json.loads((path / MANIFEST).read_text("utf-8"))["threads"])

    def load(self, path: Path, state: State) -> Position:
        """Puts a whole checkpoint (see `problems`) into parameters, optimisers and random generators.

        Raises:
            CheckpointError: it holds other parameters than the run trains.
        """
        _restore(path, state)
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        return Position(manifest["step"], manifest["metrics_bytes"], manifest["seconds"])


FILES = (WEIGHTS, STATE)
NUMBERS = {"step", "metrics_bytes", "seconds", "threads"}


def _volatile(state: State) -> dict[str, Any]:
    generators: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    return {"optimizers": [optimizer.state_dict() for optimizer in state.optimizers], "generators": generators}


@torch.no_grad()
def _restore(path: Path, state: State) -> None:
    tensors = safetensors.load_file(path / WEIGHTS)
    if tensors.keys() != state.parameters.keys():
        different = sorted(tensors.keys() ^ state.parameters.keys())
        raise CheckpointError(f"{path / WEIGHTS} holds other parameters: {different[0]} is on one side only")
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors[name])
    volatile: dict[str, Any] = torch.load(path / STATE, weights_only=True, map_location="cpu")
    for optimizer, saved in zip(state.optimizers, volatile["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    generators: dict[str, Any] = volatile["generators"]
    torch.set_rng_state(cast(Tensor, generators["torch"]))
    random.setstate(generators["python"])
    if torch.cuda.is_available() and "cuda" in generators:
        torch.cuda.set_rng_state_all(generators["cuda"])


def _file_problems(file: Path, sha256: str, size: int) -> Iterator[str]:
    if not file.is_file():
        yield f"{file} is missing"
    elif file.stat().st_size != size:
        yield f"{file} is truncated: {file.stat().st_size} of {size} bytes"
    elif file_hash(file) != sha256:
        yield f"{file} is corrupt: its SHA-256 is not the manifest's"


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file so that a reader sees the old content or the new one."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)
