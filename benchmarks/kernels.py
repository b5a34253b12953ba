"""Compose, mask, warp, sample and report against what else is available; correctness and timing in one call.

    python -m benchmarks.kernels --out benchmarks/results/kernels-cpu          # on the CPU
    python -m benchmarks.kernels --device cuda --out benchmarks/results/kernels-gpu

The theory stands first: the floor is one read of the K × V logits of each row. The copy ceiling is measured in the same
run. All variants of a case run in turn, so that a machine's drift touches all of them. Milliseconds at the 20th, 50th
and 80th percentile go to a CSV; the last line is JSON.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import interleave, median_of_ratios, report, seconds
from motet.composers.plan import Plan, Stream, TokenSet
from motet.composers.rows import compose_rows
from motet.composers.rules import DynamicRule, LinearRule
from motet.kernels.decode import DecodeRows, Kernels, decode
from motet.kernels.dispatch import choose_kernels
from motet.kernels.logits import Logits
from motet.kernels.reference import composed
from motet.kernels.sampling import SampleRows

RULES = ("linear", "contrastive", "dynamic")
TOP_P = 0.9
TOP_K = 50
TEMPERATURE = 0.8
RATIO = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """One measured point. `warp` is "none", "top_p" or "top_k_top_p"."""

    rule: str
    rows: int
    vocab: int
    members: int
    warp: str

    @property
    def floor_bytes(self) -> int:
        """One read of every member's bfloat16 logits."""
        return self.rows * self.vocab * self.members * 2


def cases(device: str) -> list[Case]:
    """The sizes of the claims on a CPU; on a GPU the whole grid."""
    if device == "cpu":
        warps = ("top_k_top_p", "top_p", "none")
        return [
            Case("contrastive", rows, vocab, 3, warp)
            for vocab in (32_000, 151_936)
            for rows in (1, 16)
            for warp in warps
        ]
    return [
        Case(rule, rows, vocab, members, warp)
        for rule in RULES
        for rows in (1, 8, 64, 256)
        for vocab in (32_000, 128_256, 151_936)
        for members in (1, 2, 3, 5)
        for warp in ("none", "top_p")
        if rule != "dynamic" or members >= 3
    ]


def plan_of(case: Case) -> Plan:
    """The base, then experts and anti-experts by turns."""
    weights = [1.0] + [1.0 if k % 2 else -1.0 for k in range(1, case.members)]
    streams = tuple(Stream(f"s{k}", f"m{k}", w) for k, w in enumerate(weights))
    masks = (TokenSet(0, "ratio", RATIO),) if case.rule == "contrastive" else ()
    return Plan(streams, masks, rule=DynamicRule() if case.rule == "dynamic" else LinearRule())


def logits_of(case: Case, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (case.rows, case.vocab)
    return [(3 * torch.randn(shape, generator=generator)).bfloat16().to(device) for _ in range(case.members)]


def decoding(case: Case, buffers: Sequence[Tensor]) -> tuple[Logits, DecodeRows]:
    """One decode as the engine does it: tokens and their log-probs."""
    logits = Logits(buffers)
    streams = [[k * case.rows + r for k in range(case.members)] for r in range(case.rows)]
    plan = compose_rows([plan_of(case)] * case.rows, streams, logits.like())
    params = SampleRows(
        [TEMPERATURE] * case.rows,
        [TOP_K if case.warp == "top_k_top_p" else 0] * case.rows,
        [1.0 if case.warp == "none" else TOP_P] * case.rows,
        [0.0] * case.rows,
    )
    return logits, DecodeRows(plan, [-1] * case.rows, params, [0.37] * case.rows)


def ours(case: Case, kernels: Kernels, buffers: Sequence[Tensor]) -> Callable[[], Tensor]:
    logits, rows = decoding(case, buffers)
    return lambda: decode(kernels, logits, rows).token


def multinomial(probs: Tensor) -> Tensor:
    return torch.multinomial(probs, 1)[:, 0]


def textbook(
    case: Case, buffers: Sequence[Tensor], draw: Callable[[Tensor], Tensor] = multinomial
) -> Callable[[], Tensor]:
    """A float32 log-softmax per member, the sum, the mask, top-k by threshold, top-p by sorting, a draw."""
    weights = [stream.weight for stream in plan_of(case).streams]

    def run() -> Tensor:
        members = [buffer.float().log_softmax(-1) for buffer in buffers]
        z = sum((w * member for w, member in zip(weights, members, strict=True)), torch.zeros_like(members[0]))
        if case.rule == "contrastive":
            best = members[0].amax(-1, keepdim=True)
            z = z.masked_fill(members[0] < best + math.log(RATIO), -torch.inf)
        z = z / TEMPERATURE
        if case.warp == "top_k_top_p":
            z = z.masked_fill(z < z.topk(TOP_K).values[:, -1:], -torch.inf)
        if case.warp != "none":
            ordered, order = z.sort()
            drop = ordered.softmax(-1).cumsum(-1) <= 1 - TOP_P
            drop[:, -1:] = False
            z = z.masked_fill(drop.scatter(1, order, drop), -torch.inf)
        return draw(z.softmax(-1))

    return run


def flashinfer(case: Case, buffers: Sequence[Tensor]) -> Callable[[], Tensor] | None:
    """FlashInfer's sampling after an eager composition, where it is installed."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    sampling: Any = importlib.import_module("flashinfer.sampling")
    weights = [stream.weight for stream in plan_of(case).streams]

    def run() -> Tensor:
        z = sum((w * b.float() for w, b in zip(weights, buffers, strict=True)), torch.zeros_like(buffers[0].float()))
        if case.rule == "contrastive":
            best = buffers[0].amax(-1, keepdim=True).float()
            z = z.masked_fill(buffers[0] < best + math.log(RATIO), -torch.inf)
        probs = (z / TEMPERATURE).softmax(-1)
        if case.warp == "none":
            return sampling.sampling_from_probs(probs)
        return sampling.top_p_sampling_from_probs(probs, TOP_P)

    return run


def check(case: Case, kernels: Kernels, buffers: Sequence[Tensor]) -> float:
    """Largest error of a composed log-prob against the float64 oracle, on the first row."""
    small = [buffer[:1].float() for buffer in buffers]
    logits, exact = Logits(small), Logits([buffer.cpu().double() for buffer in small])
    streams = [list(range(case.members))]
    got = kernels.compose(logits, compose_rows([plan_of(case)], streams, logits.like()), None, None).logprobs
    want = composed(exact.logprobs(), compose_rows([plan_of(case)], streams, exact.like())).logprobs
    possible = want > -40
    assert torch.equal(got.cpu() == -torch.inf, want == -torch.inf), f"{case}: other tokens are possible"
    error = float((got.cpu().double() - want)[possible].abs().max())
    assert error < 1e-3, f"{case}: off by {error}"
    return error


def timed(call: Callable[[], object], device: str) -> Callable[[], float]:
    """Milliseconds of one call, the device's work included."""

    def run() -> float:
        if device == "cpu":
            return 1e3 * seconds(call)
        torch.cuda.synchronize()
        return 1e3 * seconds(lambda: (call(), torch.cuda.synchronize()))

    return run


def copy_bandwidth(device: str) -> float:
    """Bytes per second of a copy, reads and writes counted: the ceiling of this run."""
    source = torch.empty(1 << (26 if device == "cpu" else 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = timed(lambda: target.copy_(source), device)
    run()
    return 2 * source.numel() / (1e-3 * statistics.median(run() for _ in range(7)))


def measure(case: Case, kernels: Kernels, device: str, rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    buffers = logits_of(case, device)
    error = check(case, kernels, buffers)
    calls: dict[str, Callable[[], Tensor] | None] = {"ours": ours(case, kernels, buffers)}
    if case.rule != "dynamic":
        calls["textbook"] = textbook(case, buffers)
        if device != "cpu":
            calls["compiled"] = cast("Any", torch).compile(textbook(case, buffers), dynamic=False)
            calls["flashinfer"] = flashinfer(case, buffers)
    found = {name: timed(call, device) for name, call in calls.items() if call is not None}
    figures = interleave(found, rounds, warm_up=2)
    floor = 1e3 * case.floor_bytes / bandwidth
    lines: list[dict[str, Any]] = []
    for name, times in figures.items():
        deciles = statistics.quantiles(times, n=10)
        line = {**asdict(case), "variant": name, "p20_ms": deciles[1], "p50_ms": deciles[4], "p80_ms": deciles[7]}
        line |= {"floor_ms": floor, "error": error, "ours_is_faster": median_of_ratios(times, figures["ours"])}
        lines.append({key: round(v, 5) if isinstance(v, float) else v for key, v in line.items()})
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", type=Path, help="name of the CSV and JSON files, without an ending")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    kernels = choose_kernels(torch.device(options.device))
    bandwidth = copy_bandwidth(options.device)
    print(f"kernels {kernels.name}; copy ceiling {bandwidth / 1e9:.1f} GB/s; floor = K × V × 2 bytes per row")
    lines: list[dict[str, Any]] = []
    for case in cases(options.device):
        found = measure(case, kernels, options.device, options.rounds, bandwidth)
        lines += found
        ratio = ", ".join(
            f"{line['variant']} {line['p50_ms']:.3f} ms ({line['ours_is_faster']:.1f} ×)" for line in found
        )
        print(f"{case.rule} R={case.rows} V={case.vocab} K={case.members} {case.warp}: {ratio}", flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    worst = min(line["ours_is_faster"] for line in lines if line["variant"] != "ours")
    results = {"kernels": kernels.name, "copy_gb_per_s": round(bandwidth / 1e9, 1), "least_gain": worst, "lines": lines}
    report("kernels", results, None if options.out is None else options.out.with_suffix(".json"))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
