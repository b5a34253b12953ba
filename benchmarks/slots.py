"""How the slots of streams lie in memory: one arena for all, arenas by length, or pages that are gathered.

    python -m benchmarks.slots --out benchmarks/results/slots.json

Attention of one decoding step over the layers of a 0.5 B model (24 layers, 14 heads over 2 of keys and values, 64 wide,
bfloat16), nothing else. Three layouts of the same keys and values:

- `one_arena`: every slot as long as the longest request needs; rows are padded to the longest of them.
- `arenas`: slots of 256, 512, … tokens (what the engine does); rows of an arena are padded to the longest of them.
- `pages`: 64 tokens each, found by a table, as vLLM has them; torch's attention reads contiguous rows, so they are
  gathered for every row and layer.

Theory: a step reads the keys and values of its rows once; 2 × 2 × 64 × 2 bytes per token and layer. Gathering writes
and reads them once more; padding reads what is not there.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch
from torch import Tensor

from benchmarks.common import environment, interleave, report, seconds
from motet.engines.torch.attention import AttentionForm, Segment, StepContext, attention
from motet.engines.torch.cache import SlotCache
from motet.engines.torch.memory import slot_length

LAYERS, HEADS, KV_HEADS, DIM, PAGE = 24, 14, 2, 64, 64
WARM_UP = 20
FORM = AttentionForm(DIM**-0.5)
BATCHES: dict[str, list[int]] = {
    "1 row of 100": [100],
    "1 row of 1,000": [1000],
    "1 row of 4,000": [4000],
    "16 rows of 100": [100] * 16,
    "16 rows of 60 to 600": list(range(60, 620, 36)),
    "16 rows of 1,000": [1000] * 16,
    "15 rows of 100, 1 of 4,000": [100] * 15 + [4000],
}


class Rows:
    """One new token for each of B rows that hold `lengths` tokens."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        generator = torch.Generator().manual_seed(len(lengths))
        shape = (len(lengths), DIM)
        self.query = torch.randn(1, HEADS, *shape, generator=generator).bfloat16()
        self.key = torch.randn(1, KV_HEADS, *shape, generator=generator).bfloat16()


def over_arenas(rows: Rows, slot_lengths: Sequence[int]) -> Callable[[], list[Tensor]]:
    """The engine's own attention over slots of these lengths."""
    cache = SlotCache([(KV_HEADS, DIM, DIM)] * LAYERS, torch.bfloat16, torch.device("cpu"))
    for length in sorted(set(slot_lengths)):
        cache.add(slot_lengths.count(length), length)
    slots = [cache.acquire([0], length, 0) for length in slot_lengths]
    order = sorted(range(len(slots)), key=lambda row: slots[row].index)
    segments = [Segment(slots[row].index, rows.lengths[row], 1, place) for place, row in enumerate(order)]
    query, key = rows.query[:, :, order], rows.key[:, :, order]

    def step() -> list[Tensor]:
        context = StepContext(cache, segments, [])
        return [context.attend(layer, query, key, key, FORM) for layer in range(LAYERS)]

    return step


def over_pages(rows: Rows) -> Callable[[], list[Tensor]]:
    """Pages in any order, gathered row by row and layer by layer into what torch's attention reads."""
    counts = [-(-(length + 1) // PAGE) for length in rows.lengths]
    widest = max(counts)
    generator = torch.Generator().manual_seed(1)
    shuffled = torch.randperm(sum(counts), generator=generator)
    table = torch.zeros(len(counts), widest, dtype=torch.int64)
    for row, (first, number) in enumerate(zip([sum(counts[:r]) for r in range(len(counts))], counts, strict=True)):
        table[row, :number] = shuffled[first : first + number]
    pages = [torch.zeros(2, sum(counts), KV_HEADS, PAGE, DIM, dtype=torch.bfloat16) for _ in range(LAYERS)]
    lengths = torch.tensor(rows.lengths)
    place = table.gather(1, (lengths // PAGE)[:, None])[:, 0]
    visible = torch.arange(widest * PAGE) <= lengths[:, None]
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16).masked_fill_(~visible, float("-inf"))[:, None, None]
    query, key = rows.query[0].transpose(0, 1), rows.key[0].transpose(0, 1)

    def layer_step(pair: Tensor) -> Tensor:
        pair[:, place, :, lengths % PAGE] = key[:, None]
        keys, values = pair[:, table].transpose(2, 3).reshape(2, len(counts), KV_HEADS, widest * PAGE, DIM)
        folded = query.reshape(len(counts), KV_HEADS, -1, DIM)
        return attention(folded, keys, values, mask, FORM)

    return lambda: [layer_step(pair) for pair in pages]


def measure(lengths: list[int], rounds: int) -> dict[str, float]:
    """Milliseconds of a step's attention."""
    rows = Rows(lengths)
    own = [slot_length(length + 1, 2 * length) for length in lengths]
    steps = {
        "one_arena": over_arenas(rows, [max(own)] * len(own)),
        "arenas": over_arenas(rows, own),
        "pages": over_pages(rows),
    }
    timed: dict[str, Callable[[], float]] = {name: (lambda step=step: seconds(step)) for name, step in steps.items()}
    figures = interleave(timed, rounds, warm_up=WARM_UP)
    return {f"{name}_ms": 1e3 * statistics.median(values) for name, values in figures.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(environment())
    results: dict[str, Any] = {}
    for name, lengths in BATCHES.items():
        results[name] = measure(lengths, options.rounds)
        print(name, "  ".join(f"{key} {value:.3g}" for key, value in results[name].items()), flush=True)
    report("slots", results, options.out)


if __name__ == "__main__":
    main()
