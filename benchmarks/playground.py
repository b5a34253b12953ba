"""What the playground costs a browser: its size, its first paint, and its frames under a long traced answer.

    python -m benchmarks.playground --out benchmarks/results/playground.json

Theory: a frame has 16.7 ms at 60 Hz; people see what takes more than 50 ms. A token's chunk with its trace of eight
alternatives is some kilobytes, read once, and one span in the last section of the text: whole lines of 48 tokens or
more, which lay out and paint by themselves. So a frame costs about the same whatever the length of the answer.

Reported: bytes of the page's files; first contentful paint and the time until it can be used over fresh tabs; while the
answer is written, the gaps between frames and the tasks of the page's main thread, from a trace of the browser. Server,
models and browser share the cores, which lengthens wall times, so the models compute in one thread; processor times are
the page's own. Needs Node, npm and Chromium (or CHROMIUM).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import make_family, report
from benchmarks.serve import OPERATOR_FILE, serving

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "clients" / "playground"
STATIC = ROOT / "motet" / "server" / "static"


def sizes() -> dict[str, int]:
    files = [file.read_bytes() for file in STATIC.iterdir()]
    return {"bytes": sum(map(len, files)), "gzipped": sum(len(gzip.compress(content)) for content in files)}


def measured(folder: Path, url: str, tokens: int, rounds: int) -> dict[str, Any]:
    """What `measure.mjs` says of the page at `url`."""
    workshop = folder / "page"
    shutil.copytree(SOURCE, workshop, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], cwd=workshop, check=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"
    given = {"MOTET_PAGE": url, "CHROMIUM": chromium, "TOKENS": str(tokens), "ROUNDS": str(rounds)}
    command = ["node", "tests/measure.mjs"]
    done = subprocess.run(command, cwd=workshop, env={**os.environ, **given}, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9, help="first paints")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = folder / "models.yaml"
        file.write_text(OPERATOR_FILE.format(**make_family(folder, "small")))
        os.environ["OMP_NUM_THREADS"] = "1"
        with serving(file) as url:
            results = measured(folder, url, options.tokens, options.rounds)
    report("playground", {"page": sizes(), **results}, options.out)


if __name__ == "__main__":
    main()
