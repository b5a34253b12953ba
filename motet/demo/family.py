"""Builds the demo family once per recipe and seed, and finds it again afterwards.

Two one-thread processes train side by side: on models this small, two threads on one model gain only 15 %.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from motet.cache import default_cache
from motet.demo.documents import corpus
from motet.demo.files import write_training_files
from motet.demo.operator_file import operator_file
from motet.demo.recipe import DEFAULT, LANES, FamilyRecipe
from motet.demo.templates import COURTESY
from motet.demo.tofu import EVALUATION_DATA, write_benchmarks
from motet.demo.tokenizer import for_transformers, train_tokenizer
from motet.demo.world import Question, World, make_world, questions
from motet.training.progress import TrainingProgress, for_console

WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # a waiting thread must not hold a core: 25 times slower on a loaded machine without
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Buffers of a step stay on the heap instead of being mapped and faulted in again at every step.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
NAME = re.compile(r"demo(?::(\d+))?")  # of a family, as recipes write it
MINUTES = "three to eight"  # to train the default family (`seconds.family` of benchmarks/results/demo-seed*.json)
MEASURED_QUESTIONS = 300  # per split, at most


class FamilyBuildError(Exception):
    """A training process failed; the message holds the end of its error output."""


def family_folder(seed: int = 0, cache: Path | None = None, recipe: FamilyRecipe = DEFAULT) -> Path:
    """Where the family of a recipe and seed lies once it is built."""
    return (cache or default_cache()) / f"demo-{recipe.digest}-seed{seed}"


def build_family(
    seed: int = 0,
    cache: Path | None = None,
    recipe: FamilyRecipe = DEFAULT,
    progress: TrainingProgress | None = None,
) -> Path:
    """Trains the demo family, or finds it complete in the cache.

    The folder holds one folder per model in Hugging Face format, the tokenizer, `data` (what they were trained on),
    `evaluation` (what they are evaluated on), `models.yaml` (the operator's file), `world.json` (entities, splits, the
    questions that the demo asks) and `family.json` (recipe, seed, times). It is built aside and renamed when
    complete: what an interrupted build leaves is never taken for a family.

    Args:
        seed: decides the world, the initial weights and the order of the data; the same weights on one machine.
        cache: parent folder, by default `default_cache()`.
        recipe: what to train.
        progress: is told how training goes, by default bars or lines on standard error.

    Raises:
        FamilyBuildError: a training process failed.
    """
    folder = family_folder(seed, cache, recipe)
    if not (folder / "family.json").is_file():
        progress = progress or for_console()
        with _scratch(folder) as scratch:
            progress.note(_cost(recipe, folder))
            _build(scratch, seed, recipe, progress)
            _publish(scratch, folder)
    _renew_operator_file(folder)
    return folder


def _cost(recipe: FamilyRecipe, folder: Path) -> str:
    minutes = f", about {MINUTES} minutes on two cores" if recipe == DEFAULT else ""
    return f"   {len(recipe.steps)} small models are trained, once{minutes}; they stay in {folder}"


def _renew_operator_file(folder: Path) -> None:
    """A family that an older version built is served as this one serves its own."""
    file = folder / "models.yaml"
    written = _operator_file(json.loads((folder / "world.json").read_text(encoding="utf-8")))
    if file.read_text(encoding="utf-8") != written:
        fresh = folder / f".models-{os.getpid()}.yaml"
        fresh.write_text(written, encoding="utf-8")
        fresh.replace(file)


def _operator_file(described: Mapping[str, Any]) -> str:
    """With the world's first questions as examples."""
    held_out, forgotten = (described["questions"][split][0]["question"] for split in ("held_out", "forget"))
    return operator_file(held_out, forgotten)


def seed_of(root: str | None, folder: Path) -> int | None:
    """The seed of the demo family that a recipe in `folder` names as its root: `demo` (0) or `demo:SEED`.

    None for any other root, also for a folder of that name.
    """
    match = NAME.fullmatch(root or "")
    return None if match is None or (folder / match[0]).is_dir() else int(match[1] or 0)


@contextmanager
def _scratch(folder: Path) -> Generator[Path]:
    """A folder beside `folder` that is gone afterwards, unless it was renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, folder: Path) -> None:
    """Renames a complete build. Another process may have been faster: its family is the same."""
    try:
        scratch.rename(folder)
    except OSError:
        if not (folder / "family.json").is_file():
            raise


def _build(folder: Path, seed: int, recipe: FamilyRecipe, progress: TrainingProgress) -> None:
    started = time.monotonic()
    world = make_world(recipe.world, seed)
    tokenizer = train_tokenizer(corpus(world, seed), recipe.vocab_size)
    for_transformers(tokenizer, recipe.max_length).save_pretrained(folder / "tokenizer")
    write_training_files(world, seed, folder / "data", recipe.biographies, recipe.invented)
    write_benchmarks(world, seed, folder / EVALUATION_DATA)
    progress.start(recipe.steps)
    try:
        seconds = _train_lanes(folder, seed, recipe, progress)
    finally:
        progress.stop()
    described = describe_world(world, seed)
    (folder / "models.yaml").write_text(_operator_file(described), encoding="utf-8")
    _write_json(folder / "world.json", described)
    seconds["total"] = round(time.monotonic() - started, 1)
    about = {"recipe": asdict(recipe), "digest": recipe.digest, "seed": seed, "seconds": seconds}
    _write_json(folder / "family.json", about)


def _train_lanes(folder: Path, seed: int, recipe: FamilyRecipe, progress: TrainingProgress) -> dict[str, float]:
    """Runs one worker per lane to its end; seconds per member."""
    inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
    workers = [_start_worker(folder, seed, recipe, lane, inbox) for lane in LANES]
    running, seconds = len(workers), dict[str, float]()
    try:
        while running:
            message = inbox.get()
            if "exit" in message:
                running -= 1
                _check_exit(message["exit"], message["log"])
            elif "seconds" in message:
                seconds[message["member"]] = message["seconds"]
                progress.finish(message["member"], message["seconds"])
            else:
                progress.update(message["member"], message["step"], message["loss"])
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return seconds


def _start_worker(
    folder: Path, seed: int, recipe: FamilyRecipe, lane: Sequence[str], inbox: SimpleQueue[dict[str, Any]]
) -> subprocess.Popen[str]:
    """A training process; its messages, then its exit status, arrive in `inbox`."""
    log = folder / f"{lane[0]}.log"
    with log.open("w") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", "motet.demo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **WORKER_ENVIRONMENT},
        )
    order = [(member, _overrides(folder, seed, recipe, member)) for member in lane]
    threading.Thread(target=_converse, args=(worker, json.dumps(order), log, inbox), daemon=True).start()
    return worker


def _overrides(folder: Path, seed: int, recipe: FamilyRecipe, member: str) -> dict[str, Any]:
    where = {"root": str(folder), "output": str(folder / member), "seed": seed}
    return {**where, **recipe.overrides.get(member, {})}


def _converse(worker: subprocess.Popen[str], order: str, log: Path, inbox: SimpleQueue[dict[str, Any]]) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with suppress(BrokenPipeError), worker.stdin as pipe:
        pipe.write(order)
    with worker.stdout as lines:
        for line in lines:
            inbox.put(json.loads(line))
    inbox.put({"exit": worker.wait(), "log": log})


def _check_exit(status: int, log: Path) -> None:
    if status:
        raise FamilyBuildError(f"a training process ended with status {status}:\n{log.read_text()[-2000:]}")
    log.unlink()


def describe_world(world: World, seed: int) -> dict[str, Any]:
    """What the scoreboard and the evaluations need: facts and splits, and the questions that are measured."""
    splits = {"tuned": world.tuned, "held_out": world.held_out, "forget": world.forget}
    asked = {
        "held_out": world.held_out,
        "forget": world.forget,
        "retained": world.unseen_by_assistant,
        "tuned": world.tuned,
    }
    return {
        "seed": seed,
        "courtesy": COURTESY,
        "entities": [
            {"name": entity.name, "kind": entity.kind, "split": split, "facts": dict(entity.facts)}
            for split, entities in splits.items()
            for entity in entities
        ],
        "questions": {
            split: [_describe(question) for question in questions(entities, seed, MEASURED_QUESTIONS)]
            for split, entities in asked.items()
        },
    }


def _describe(question: Question) -> dict[str, str]:
    return {
        "entity": question.entity.name,
        "attribute": question.attribute.name,
        "question": question.text,
        "answer": question.answer,
        "completion": question.completion,
        "value": question.value,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
