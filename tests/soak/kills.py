"""`python -m tests.soak kills`: servers and a trainer that end at any moment, and whether anything of theirs stays.

Servers are ended while they start, wait, or answer, by SIGKILL or by signals that ask. Afterwards no process of theirs
runs, nothing lies in the folder for temporary files or in shared memory, and the next one starts at once on the same
port and answers the same bit by bit. The trainer is killed and resumed until it is done: its weights must be those of a
run that nobody disturbed.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tests.soak.points.lab import structured
from tests.soak.probe import Probe, members
from tests.soak.process import Launch, Server, ServerEnded, free_port, start
from tests.soak.raw import post, says

SET_CHILD_SUBREAPER = 36  # of prctl(2): orphans become this process's children, where they can be counted
ENDINGS: dict[str, tuple[signal.Signals, ...]] = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
    "SIGINT": (signal.SIGINT,),
}
MOMENTS = ("starting", "waiting", "answering", "answering")
GONE_S = 5.0  # until what a killed server has started has noticed
ENDED_S = 60.0  # drained by then
STEPS = 400  # of the trainer
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Tally:
    ended: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])
    starts: list[float] = field(default_factory=list[float])
    ends: list[float] = field(default_factory=list[float])
    probe: Probe = field(default_factory=Probe)


def kills(launch: Launch, servers: int, trainers: int, seed: int) -> dict[str, Any]:
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # what a shell runs in the background ignores it, and hands that on to whatever it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcome: dict[str, Any] = {"server": _kill_servers(launch, servers, seed)}
    return {**outcome, "trainer": _kill_trainers(launch, trainers, seed)} if trainers else outcome


def _kill_servers(launch: Launch, number: int, seed: int) -> dict[str, Any]:
    tally, port = Tally(), free_port()
    with tempfile.TemporaryDirectory(prefix="motet-soak-") as scratch:
        temporary, cache = Path(scratch) / "tmp", Path(scratch) / "cache"  # what torch compiles may stay, in the latter
        temporary.mkdir()
        folders = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        given = replace(launch, environment={**launch.environment, **folders}, port=port)
        for index in range(number + 1):  # the last one only has to answer
            rng = random.Random(f"{seed}/{index}")
            _one(given, temporary, tally, rng if index < number else None)
    return {
        "ended": dict(sorted(tally.ended.items())),
        "faults": tally.faults,
        "longest_start_s": round(max(tally.starts, default=0), 1),
        "longest_end_s": round(max(tally.ends, default=0), 1),
        "probe": tally.probe.summary(),
    }


def _one(launch: Launch, scratch: Path, tally: Tally, rng: random.Random | None) -> None:
    """One server from its start to its end; without `rng` it ends by itself."""
    shared = _names(SHARED_MEMORY)
    moment, ending = (rng.choice(MOMENTS), rng.choice(list(ENDINGS))) if rng else ("waiting", "SIGTERM")
    what = f"{moment}, {ending}"
    if moment == "starting" and rng and tally.starts:
        ended = _end_early(launch, ENDINGS[ending], rng.uniform(0, tally.starts[0]), tally)
    else:
        began = time.monotonic()
        try:
            server = start(launch)
        except ServerEnded as error:
            tally.faults.append(f"before {what}: {str(error)[-300:]}")
            return
        tally.starts.append(time.monotonic() - began)
        if not tally.probe.ask(server.url, fresh=True):
            tally.faults.append(f"before {what}: another answer")
        ended = asyncio.run(_end(server, ENDINGS[ending], rng if moment == "answering" else None, tally))
    tally.ended[what] += 1
    left = [*_orphans(), *(_names(SHARED_MEMORY) - shared), *_names(scratch)]
    faults = [f"{what}: {said}" for said in (*ended, *(f"{name} is left" for name in left))]
    print(f"server ended: {what}", *faults, sep="\n      - ", flush=True)
    tally.faults += faults


def _end_early(launch: Launch, signals: Sequence[signal.Signals], seconds: float, tally: Tally) -> list[str]:
    """Ends a server that is not ready yet."""
    with tempfile.TemporaryFile() as log:
        command = launch.command("serve", str(launch.file), "--port", str(launch.port), *launch.flags)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=launch.variables())
        time.sleep(seconds)
        _signal(process, signals)
        return _judged(process, signals, tally, lambda: (log.seek(0), log.read())[1].decode("utf-8", "replace"))


async def _end(server: Server, signals: Sequence[signal.Signals], rng: random.Random | None, tally: Tally) -> list[str]:
    """Ends a server that waits, or with `rng` one that has something of everything to do."""
    asking = [asyncio.create_task(says(server.url, sent, ENDED_S)) for sent in _load(server.url)] if rng else []
    await asyncio.sleep(rng.uniform(0, 1.5) if rng else 0)
    await asyncio.to_thread(_signal, server.process, signals)
    faults = await asyncio.to_thread(_judged, server.process, signals, tally, server.log_text)
    await asyncio.gather(*asking)
    server.discard()
    return faults


def _load(url: str) -> list[bytes]:
    model = members(url)[0]
    long = {"model": model, "prompt": "The town of", "max_tokens": 50, "ignore_eos": True, "n": 4, "logprobs": 5}
    bodies = [{**long, "stream": True}, long, {**long, "prompt": ["a", "b"], "temperature": 0}]
    grammars = [structured(regex=f"[a-z]{{{k},40}}x") for k in range(4)]
    return [*(post("/v1/completions", body) for body in bodies * 4), *(post(one.path, one.body) for one in grammars)]


def _signal(process: subprocess.Popen[bytes], signals: Sequence[signal.Signals]) -> None:
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)


def _judged(process: subprocess.Popen[bytes], signals: Sequence[signal.Signals], tally: Tally, log: Any) -> list[str]:
    """Waits for the end; what was wrong with it."""
    began = time.monotonic()
    try:
        status = process.wait(ENDED_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"did not end within {ENDED_S:.0f} s"]
    tally.ends.append(time.monotonic() - began)
    if signals[0] == signal.SIGKILL:
        return []
    said, number = log(), signals[0]
    words = [sign for sign in ("Traceback", "terminate called", "panicked", "resource_tracker") if sign in said]
    fine = status in (0, -number, 128 + number)
    return [*([] if fine else [f"status {status}"]), *(f"{sign}: {said[-300:]}" for sign in words)]


def _orphans() -> list[str]:
    """Processes that a server has left, once they had time to notice; they are ended then."""
    deadline = time.monotonic() + GONE_S
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in left:
        with suppress(psutil.Error):
            one.kill()
    return [f"process {_shown(one)}" for one in left]


def _children() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, ChildProcessError):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
            elif one.ppid() == psutil.Process().pid:
                one.wait(0)
    return found


def _shown(one: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(one.cmdline())[:120]
    return str(one.pid)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder.parent)) for path in folder.rglob("*")} if folder.is_dir() else set()


def _kill_trainers(launch: Launch, number: int, seed: int) -> dict[str, Any]:
    """One run in peace, one that is killed `number` times on its way and then finished."""
    rng = random.Random(f"{seed}/trainer")
    with tempfile.TemporaryDirectory(prefix="motet-soak-") as scratch:
        peace, killed = (_recipe(launch.file.parent, Path(scratch) / name) for name in ("peace", "killed"))
        whole = _train(launch, peace).wait()
        steps = [_kill_trainer(launch, killed, rng, STEPS // number) for _ in range(number)]
        last = _train(launch, killed).wait()
        metrics = (killed.parent / "run" / "metrics.jsonl").read_text().splitlines()
        return {
            "statuses": [whole, last],
            "steps_at_kills": steps,
            "bit_equal": _weights(peace.parent / "run") == _weights(killed.parent / "run"),
            "metrics_whole": [json.loads(line)["step"] for line in metrics] == list(range(1, STEPS + 1)),
            "left": sorted(_names(killed.parent / "run") ^ _names(peace.parent / "run")),
        }


def _recipe(family: Path, folder: Path) -> Path:
    """A recipe over the smallest model of the family, with all that has a state: dropout, adapters, clipping."""
    folder.mkdir()
    rows = [{"prompt": f"How is house {i}?", "completion": f" It is {'very ' * (i % 3)}old."} for i in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "root": str(family),
        "output": str(folder / "run"),
        "model": {"path": "small"},
        "objective": {"type": "sft"},
        "data": {"train": {"files": [str(folder / "train.jsonl")]}},
        "tuning": {"type": "lora", "r": 4, "dropout": 0.2},
        "optimizer": {"type": "adamw", "lr": 1e-3, "clip": 1.0},
        "schedule": {"steps": STEPS, "warmup": 3},
        "checkpoints": {"every": 10},
        "logging": {"every": 1},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    return file


def _train(launch: Launch, recipe: Path) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    command = launch.command("train", str(recipe), "--resume")
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=launch.variables())


def _kill_trainer(launch: Launch, recipe: Path, rng: random.Random, most: int) -> int:
    """How many steps were written when it was killed: `most` more than before at most, but for the moment that takes;
    one in four before it has taken any."""
    target = _steps(recipe) + rng.randrange(1, most)
    process = _train(launch, recipe)
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0, 3))
    else:
        while process.poll() is None and _steps(recipe) < target:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.wait()
    print(f"trainer killed after {_steps(recipe)} steps", flush=True)
    return _steps(recipe)


def _steps(recipe: Path) -> int:
    metrics = recipe.parent / "run" / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def _weights(run: Path) -> str:
    files = sorted(run.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else f"none in {run}"
