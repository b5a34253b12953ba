"""Libraries that could stand in the place of our own code, against it: `python -m benchmarks.libraries`.

Needs `pip install ruamel.yaml datasketch`. docs/libraries.md says what was decided.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import motet
from benchmarks.common import interleave, report, seconds
from motet.settings import read_yaml
from motet.training.data.curation.duplicates import find_duplicates, jaccard, shingles, words
from motet.training.data.files import RecordSource
from motet.training.optim import MuonOptimizer

# the hidden matrices of the demo family's larger model
MATRICES = ([(256, 256)] * 4 + [(768, 256)] * 2 + [(256, 768)]) * 3
ROWS, NEAR, WORDS_PER_ROW, VOCABULARY = 3000, 300, 60, 3000
THRESHOLD, BANDS, PER_BAND = 0.8, 32, 4


def compared(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians of interleaved rounds in ms."""
    figures = interleave({name: lambda run=run: seconds(run) for name, run in variants.items()}, rounds)
    return {f"{name}_ms": round(statistics.median(taken) * 1000, 1) for name, taken in figures.items()}


def settings(rounds: int) -> dict[str, Any]:
    """All packaged recipes read by both."""
    yaml: Any = import_module("ruamel.yaml")
    texts = [file.read_text("utf-8") for file in sorted(Path(motet.__file__).parent.glob("*/recipes/*.yaml"))]

    def ruamel(text: str) -> Any:
        return yaml.YAML(typ="safe", pure=True).load(text)

    assert all(read_yaml(text) == ruamel(text) for text in texts)
    variants: dict[str, Callable[[], object]] = {
        "ours": lambda: [read_yaml(text) for text in texts],
        "ruamel_yaml": lambda: [ruamel(text) for text in texts],
    }
    return {"files": len(texts), **compared(variants, rounds)}


def muon(rounds: int) -> dict[str, Any]:
    """One step over the same matrices."""

    def made(kind: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> Callable[[], object]:
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(shape) * 0.02) for shape in MATRICES]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return kind(parameters).step

    def theirs(given: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Muon(given, lr=0.005, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    variants = {"ours": made(lambda given: MuonOptimizer(given, 0.005)), "torch": made(theirs)}
    return {"matrices": len(MATRICES), **compared(variants, 10 * rounds)}


def duplicates(rounds: int) -> dict[str, Any]:
    """Random rows, a tenth of them once more with one other word."""
    rng = random.Random(0)
    rows = [" ".join(f"w{rng.randrange(VOCABULARY)}" for _ in range(WORDS_PER_ROW)) for _ in range(ROWS)]
    rows += [" ".join(["changed", *row.split()[1:]]) for row in rows[:NEAR]]
    sources = [RecordSource("rows", line) for line in range(len(rows))]
    variants: dict[str, Callable[[], object]] = {
        "ours": lambda: find_duplicates(sources, rows, THRESHOLD),
        "datasketch": lambda: by_datasketch(rows),
    }
    found = {"ours": len(find_duplicates(sources, rows, THRESHOLD)), "datasketch": by_datasketch(rows)}
    return {"rows": len(rows), "found": found, **compared(variants, rounds)}


def _low_bits(gram: int) -> int:
    return gram & 0xFFFFFFFF


def by_datasketch(rows: list[str]) -> int:
    """How many rows are near to a kept one before them: the same hashes and bands, candidates checked exactly."""
    library: Any = import_module("datasketch")
    index: Any = library.MinHashLSH(num_perm=BANDS * PER_BAND, params=(BANDS, PER_BAND))
    kept: dict[int, frozenset[int]] = {}
    for number, row in enumerate(rows):
        grams = shingles(words(row))
        signature: Any = library.MinHash(num_perm=BANDS * PER_BAND, hashfunc=_low_bits)
        signature.update_batch(list(grams))
        if max((jaccard(grams, kept[key]) for key in index.query(signature)), default=0.0) < THRESHOLD:
            kept[number] = grams
            index.insert(number, signature)
    return len(rows) - len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, Any] = {what.__name__: what(given.rounds) for what in (settings, muon, duplicates)}
    measured["versions"] = {name: version(name) for name in ("ruamel.yaml", "datasketch")}
    report("libraries", measured, given.out)


if __name__ == "__main__":
    main()
