"""How many files one chat request runs through. It counts and times nothing.

    python -m benchmarks.trunk --before ../motet-before --out benchmarks/results/trunk.json

The request: one chat completion of one token over HTTP, in process, from the embedded engine, by a composition of three
small random models; the second of two, as the first builds what is kept. Each call of a function of `motet/` is noted
(`sys.setprofile`), in the engine's thread and outside of it.

- `files`: distinct files of which a function was called.
- `functions`: distinct functions.
- `changes`: how often somebody who reads each function once, in the order of their first calls, opens another file
  than the one before. It does not depend on how many tokens are generated.
- `running`: how often the running request itself goes from a file to another, over all calls.

`before` is another checkout, counted by this same file with that checkout's `motet`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINE_THREAD = "motet-engine"
SETTLED = 0.5  # seconds within which the engine's thread has cleared away what a request held
COMPOSITION = "{strategy: proxy_tuning, base: base, expert: expert, antiexpert: antiexpert}"


@dataclass
class Trace:
    """Calls of functions of the package in `folder`, while it is `on`."""

    folder: str
    on: bool = False
    calls: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])  # thread, file, function

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if self.on and event == "call" and file.startswith(self.folder):
            name = file.removeprefix(self.folder)
            self.calls.append((threading.current_thread().name, name, frame.f_code.co_qualname))


def figures(calls: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """What the module's docstring says, of calls in their order."""
    running = [file for _, file, _ in calls]
    firsts = [file for file, _ in dict.fromkeys((file, function) for _, file, function in calls)]
    return {
        "files": len(set(firsts)),
        "functions": len(firsts),
        "changes": _changes(firsts),
        "running": _changes(running),
        "in_order": list(dict.fromkeys(firsts)),
    }


def _changes(files: Sequence[str]) -> int:
    return sum(one != other for one, other in pairwise(files))


def operator_file(folder: Path) -> Path:
    """The three members of `benchmarks.common`'s small size, and their composition."""
    from benchmarks.common import make_family

    members = [f"  {name}: {{path: {path}}}" for name, path in make_family(folder, "small").items()]
    file = folder / "models.yaml"
    file.write_text("\n".join(["models:", *members, "compositions:", f"  composed: {COMPOSITION}", ""]))
    return file


async def ask(models: Path, trace: Trace) -> None:
    from motet.evaluation.backend import in_process

    async with in_process(models) as client:
        for trace.on in (False, True):
            await client.chat.completions.create(
                model="composed", messages=[{"role": "user", "content": "t5 t6 t7"}], max_tokens=1, temperature=0
            )
            await asyncio.sleep(SETTLED)
        trace.on = False


def traced(root: Path) -> list[tuple[str, str, str]]:
    """The calls of the request in this process; `root` is the checkout that `motet` is imported from."""
    trace = Trace(f"{root / 'motet'}{os.sep}")
    threading.setprofile(trace.note)
    sys.setprofile(trace.note)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(ask(operator_file(Path(folder)), trace))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return trace.calls


def counted(root: Path) -> dict[str, Any]:
    calls = traced(root)
    return {
        "outside_of_the_engine_thread": figures([call for call in calls if call[0] != ENGINE_THREAD]),
        "in_the_engine_thread": figures([call for call in calls if call[0] == ENGINE_THREAD]),
        "in_all": figures(calls),
    }


def counted_apart(root: Path) -> dict[str, Any]:
    """Counts in a process of its own, over the `motet` of `root`."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--count", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    return {"commit": commit, **json.loads(output.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description="How many files one chat request runs through.")
    parser.add_argument("--before", type=Path, help="another checkout, to be counted too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.count is not None:
        print(json.dumps(counted(args.count.resolve())))
        return
    from benchmarks.common import report

    roots = {"before": args.before, "after": ROOT}
    report("trunk", {name: counted_apart(root.resolve()) for name, root in roots.items() if root is not None}, args.out)


if __name__ == "__main__":
    main()
