"""Runs end in the same weights however often they are killed, interrupted or robbed of a checkpoint."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from motet.training.recipe import Recipe
from motet.training.run.checkpoint import FOLDER, MANIFEST, STATE, WEIGHTS
from motet.training.run.errors import RunError
from motet.training.run.metrics import Metrics
from motet.training.run.train import Interrupted, train
from tests.training.run.workshop import recipe

STEPS = 60
# Everything with a state: dropout, adapters, accumulation and clipping; momentum, orthogonalised; rounds.
KILLED: dict[str, dict[str, Any]] = {
    "lora": {
        "tuning": {"type": "lora", "r": 4, "dropout": 0.2},
        "batch": {"rows": 4, "accumulate": 2},
        "optimizer": {"type": "adamw", "lr": 3e-3, "clip": 1.0},
    },
    "half_muon": {"tuning": {"type": "half", "rounds": 4}, "optimizer": {"type": "muon"}},
}
SHORT: dict[str, Any] = {
    "schedule": {"steps": 9, "warmup": 2},
    "checkpoints": {"every": 3},
    "tuning": {"type": "lora", "r": 4, "dropout": 0.2},
}


def weights(output: Path) -> bytes:
    return next(output.glob("*model.safetensors")).read_bytes()


def steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / FOLDER).iterdir())


@pytest.fixture(scope="module")
def peaceful(root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the short run."""
    return weights(train(recipe(tmp_path_factory.mktemp("peace") / "run", **SHORT), root=root))


def short(tmp_path: Path, **changes: Any) -> Recipe:
    return recipe(tmp_path / "run", **{**SHORT, **changes})


def stopped(root: Path, chosen: Recipe, step: int) -> None:
    """Runs until `step`, with an interrupt, and leaves the checkpoints."""

    def interrupt(metrics: Metrics) -> None:
        if metrics.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(chosen, root=root, progress=interrupt)


def test_twenty_kills_change_nothing(root: Path, tmp_path: Path) -> None:
    """SIGKILL at random steps, 20 times: bit-equal weights, no metrics twice, none missing."""
    sections = {"schedule": {"steps": STEPS, "warmup": 3}, "checkpoints": {"every": 3}}
    order = {
        "root": str(root),
        "output": str(tmp_path),
        "kills": 10,
        "seed": 0,
        "recipes": {name: sections | more for name, more in KILLED.items()},
    }
    command = [sys.executable, "-m", "tests.training.run.killing"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.keys() == KILLED.keys()
    for result in results.values():
        assert len(result["killed_at"]) == 10
        assert result["killed"] == result["peace"]
        assert result["metrics"] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(root: Path, tmp_path: Path, peaceful: bytes, number: signal.Signals) -> None:
    chosen = short(tmp_path)

    def interrupt(metrics: Metrics) -> None:
        if metrics.step == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="step 5") as caught:
        train(chosen, root=root, progress=interrupt)
    assert caught.value.step == 5
    assert caught.value.checkpoint.name == "step-00000005"
    assert signal.getsignal(number) == before
    assert not (chosen.output / "expert.json").exists()
    told: list[str] = []
    train(chosen, root=root, existing="resume", tell=told.append)
    assert told[0].startswith("resuming after step 5 of 9")
    assert weights(chosen.output) == peaceful
    assert steps(chosen.output) == list(range(1, 10))
    assert not (chosen.output / FOLDER).exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "corrupt": lambda newest: flip(newest / WEIGHTS),
    "truncated": lambda newest: os.truncate(newest / STATE, 100),
    "missing": lambda newest: (newest / WEIGHTS).unlink(),
    "manifest": lambda newest: (newest / MANIFEST).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_aloud(root: Path, tmp_path: Path, peaceful: bytes, damage: str) -> None:
    chosen = short(tmp_path)
    stopped(root, chosen, 7)
    assert checkpoints(chosen.output) == ["step-00000006", "step-00000007"]
    newest = chosen.output / FOLDER / "step-00000007"
    DAMAGES[damage](newest)
    told: list[str] = []
    train(chosen, root=root, existing="resume", tell=told.append)
    assert told[0].startswith("skipped a checkpoint: ")
    assert str(newest) in told[0]
    assert told[1].startswith("resuming after step 6 of 9")
    assert weights(chosen.output) == peaceful
    assert steps(chosen.output) == list(range(1, 10))


def test_without_any_good_checkpoint_a_run_begins_again_aloud(root: Path, tmp_path: Path, peaceful: bytes) -> None:
    chosen = short(tmp_path)
    stopped(root, chosen, 4)
    for path in (chosen.output / FOLDER).iterdir():
        flip(path / STATE)
    told: list[str] = []
    train(chosen, root=root, existing="resume", tell=told.append)
    assert [line.split(":")[0] for line in told] == ["skipped a checkpoint"] * 2 + ["no checkpoint to resume from"]
    assert weights(chosen.output) == peaceful


@contextmanager
def small_files(limit: int) -> Generator[None]:
    """No file can grow beyond `limit` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(root: Path, tmp_path: Path, peaceful: bytes) -> None:
    chosen = short(tmp_path)

    def fill(metrics: Metrics) -> None:
        if metrics.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    message = r"checkpoint of step 6 cannot be written: .*last good one is .*00000003"
    with small_files(1 << 20), pytest.raises(RunError, match=message):
        train(chosen, root=root, progress=fill)
    assert checkpoints(chosen.output) == ["step-00000003"]
    train(chosen, root=root, existing="resume")
    assert weights(chosen.output) == peaceful


def test_a_result_that_does_not_fit_can_be_written_later(root: Path, tmp_path: Path) -> None:
    """The merged weights are larger than the checkpoints of their adapter."""
    changes: dict[str, Any] = {"tuning": {**SHORT["tuning"], "merge": True}, "optimizer": {"type": "muon"}}
    chosen = short(tmp_path, **changes)
    with small_files(42_000), pytest.raises(RunError, match="the result cannot be written"):
        train(chosen, root=root)
    assert checkpoints(chosen.output) == ["step-00000006", "step-00000009"]
    assert not list(chosen.output.glob("*.safetensors"))
    told: list[str] = []
    train(chosen, root=root, existing="resume", tell=told.append)
    assert told[0].startswith("resuming after step 9 of 9")
    assert (chosen.output / "expert.json").is_file()
    assert weights(train(short(tmp_path / "again", **changes), root=root)) == weights(chosen.output)


def test_another_number_of_threads_is_told(root: Path, tmp_path: Path) -> None:
    chosen = short(tmp_path)
    stopped(root, chosen, 4)
    (path, *_) = sorted((chosen.output / FOLDER).iterdir(), reverse=True)
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | {"threads": 77}))
    told: list[str] = []
    train(chosen, root=root, existing="resume", tell=told.append)
    assert told[1].startswith("the run had 77 threads")


def test_the_command_says_how_to_resume(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"root: {root}\noutput: {tmp_path / 'run'}\nmodel: {{path: base}}\nobjective: {{type: sft}}\n"
        "data: {train: {files: [train.jsonl]}}\nschedule: {steps: 100000}\nlogging: {every: 1}\n"
    )
    command = [sys.executable, "-m", "motet.cli", "train", str(file), "seed=3"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert f"motet train {file} seed=3 --resume" in told
    assert len(checkpoints(tmp_path / "run")) == 1
