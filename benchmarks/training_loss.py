"""The loss of one member trained through a composition: in blocks of tokens, against all logits at once.

    python -m benchmarks.training_loss --out benchmarks/results/training-loss

Theory: written out, every member's float32 log-softmax (N × V) is kept for the backward pass or made again by it; in
blocks, no more than one block of the sum ever exists. Time and memory of the same loss with its gradients, the variants
in turn; each has a process of its own for its peak memory. Figures go to a CSV; the last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import interleave, median_of_ratios, report, seconds
from motet.kernels.composed_loss import in_blocks, weighted_sum

TOKENS, VOCAB, HIDDEN, BASE_HIDDEN = 512, 32_000, 256, 512
WEIGHTS = (1.0, 1.0, -1.0)
BLOCKS = (32, 64, 128, 256)


Members = tuple[list[Tensor], list[Tensor], Tensor]


def members() -> Members:
    """Hidden states and heads of a trained member, a base and an anti-expert, and targets."""
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, generator=generator) / width**0.5

    widths = (HIDDEN, BASE_HIDDEN, HIDDEN)
    hidden, heads = [random(TOKENS, width) for width in widths], [random(VOCAB, width) for width in widths]
    hidden[0].requires_grad_()
    return hidden, heads, torch.randint(VOCAB, (TOKENS,), generator=generator)


def written_out(hidden: Sequence[Tensor], heads: Sequence[Tensor], target: Tensor) -> Tensor:
    """What a trainer does with whole logits."""
    each = zip(WEIGHTS, hidden, heads, strict=True)
    z = torch.stack([weight * (h @ head.T).log_softmax(-1) for weight, h, head in each]).sum(0)
    return torch.nn.functional.cross_entropy(z, target)


def in_blocks_of(size: int, hidden: Sequence[Tensor], heads: Sequence[Tensor], target: Tensor) -> Tensor:
    def values(rows: slice, *parts: Tensor) -> Tensor:
        z = weighted_sum([h @ head.T for h, head in zip(parts, heads, strict=True)], WEIGHTS)
        return torch.nn.functional.cross_entropy(z, target[rows], reduction="none")

    return in_blocks(values, hidden, size).mean()


def losses() -> dict[str, Callable[[], Tensor]]:
    made = members()

    def blocks(size: int) -> Callable[[], Tensor]:
        return lambda: in_blocks_of(size, *made)

    return {"written out": lambda: written_out(*made), **{f"blocks of {size}": blocks(size) for size in BLOCKS}}


def timed(loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Seconds of one loss with its gradients."""

    def run() -> None:
        loss().backward()

    return lambda: seconds(run)


def peak_megabytes(variant: str) -> float:
    """What one loss with its gradients adds to the largest size of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training_loss", "--peak", variant]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def print_peak(variant: str) -> None:
    """The members themselves are not counted, nor what torch's first products set up."""
    loss = losses()[variant]
    torch.randn(64, 64).mm(torch.randn(64, 64))
    before = resident("VmRSS")
    loss().backward()
    print(resident("VmHWM") - before)


def resident(field: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help="print the peak memory of one variant and end")
    parser.add_argument("--out", type=Path, help="name of the CSV and JSON files, without an ending")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options.peak)
        return
    found = losses()
    values = {name: float(loss().detach()) for name, loss in found.items()}
    assert max(values.values()) - min(values.values()) < 1e-4, values
    times = interleave({name: timed(loss) for name, loss in found.items()}, options.rounds)
    lines: list[dict[str, Any]] = [
        {
            "variant": name,
            "tokens": TOKENS,
            "vocab": VOCAB,
            "members": 3,
            "p50_s": round(sorted(figures)[len(figures) // 2], 4),
            "faster_than_written_out": round(median_of_ratios(times["written out"], figures), 3),
            "peak_mb": round(peak_megabytes(name), 1),
        }
        for name, figures in times.items()
    ]
    for line in lines:
        print(json.dumps(line))
    if options.out is not None:
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    report("training_loss", lines, None if options.out is None else options.out.with_suffix(".json"))


if __name__ == "__main__":
    main()
