"""Tokens per second on real checkpoints: both engines, single models and contrastive decoding, one request and sixteen.

Beside them transformers' `generate` and llama.cpp on the same weights as a GGUF file. All take turns in one run, round
by round; figures are medians over rounds, ratios are taken within rounds.

Theory: at batch 1 a token reads every weight once, so tokens per second ≤ bandwidth / bytes of weights; a composition
reads its members' weights one after the other. The bandwidth is measured in the same run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import interleave, median_of_ratios
from benchmarks.real.contestants import LLAMA_CPP, Contestant, LlamaCpp, motet, transformers
from benchmarks.real.judge import judged
from benchmarks.real.rounds import Rounds
from benchmarks.real.setup import LARGE, SMALL, Setup
from benchmarks.real.weights import INT4_BITS, bandwidth, bytes_per_step
from motet.operator.settings import ModelConfig

OURS, INT4, VLLM = "motet bfloat16", "motet int4", "motet on vLLM bfloat16"
TRANSFORMERS, LLAMA = "transformers bfloat16", "llama.cpp 4-bit"
NAMES = (OURS, INT4, VLLM, TRANSFORMERS, LLAMA)
COMPOSED = "contrastive"
BATCHES = (1, 16)
AIMS = (  # figure ≥ aim × other: the first two at batch 1 and 16 of each model
    (INT4, LLAMA, {1: 0.9, 16: 1.0}),
    (OURS, TRANSFORMERS, {1: 1.0, 16: 1.0}),
)
COMPOSED_AIM = 0.95  # of the rate of members that take turns: a composed step ≤ 1.05 × its members'
EXPECTED = """\
expected: bfloat16 near the memory's bandwidth at batch 1, int4 at up to 3.5 times that, the composition at the rate of
members that take turns; at batch 16 arithmetic bounds, not memory."""

Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant that can take part: how it is started, what it serves, bytes read per step by model."""

    name: str
    start: Callable[[], AbstractContextManager[Contestant]]
    bytes: Mapping[str, float]


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """Rounds of all contestants that can take part; the file of rounds is written after each, and continued."""
    entries = [entry for entry in _entries(setup) if not wanted or entry.name in wanted]
    reading = bandwidth()
    print(f"{EXPECTED}\nmemory is read at {reading / 1e9:.1f} GB/s", flush=True)
    for entry in entries:
        for model, size in entry.bytes.items():
            print(f"  {entry.name}, {model}: {size / 1e9:.2f} GB per step, at most {reading / size:.1f} tokens/s")
    key = [*(entry.name for entry in entries), setup.size.tokens, setup.threads]
    rounds = Rounds(setup.folder("speed") / "rounds.json", key, setup.size.rounds)
    if rounds.missing:
        _measure(setup, entries, rounds)
    figures: Figures = {name: [row[name] for row in rounds.rows] for name in rounds.rows[0]}
    for line in _report(figures):
        print(line)
    return setup.save("speed", _results(setup, figures, entries, reading))


def _measure(setup: Setup, entries: list[Entry], rounds: Rounds) -> None:
    with ExitStack() as stack:
        variants: dict[str, Callable[[], float]] = {}
        for entry in entries:
            print(f"starting {entry.name}", flush=True)
            contestant = stack.enter_context(entry.start())
            variants |= {
                (name := f"{entry.name}, {model}, {batch}"): _variant(name, contestant, model, batch, setup.size.tokens)
                for model in entry.bytes
                for batch in BATCHES
            }
        for number in range(rounds.missing):
            figures = interleave(variants, 1, warm_up=int(number == 0))
            rounds.add({name: values[0] for name, values in figures.items()})


def _variant(name: str, contestant: Contestant, model: str, batch: int, tokens: int) -> Callable[[], float]:
    def run() -> float:
        rate = contestant.rate(model, batch, tokens)
        print(f"  {name}: {rate:.1f} tokens/s", flush=True)
        return rate

    return run


def _entries(setup: Setup) -> Iterator[Entry]:
    """Who can take part; who cannot is named with the reason."""
    paths = {name: setup.model(name) for name in (LARGE, SMALL)}
    read = {name: float(bytes_per_step(path)) for name, path in paths.items()}
    with_composed = {**read, COMPOSED: sum(read.values())}
    folder = setup.folder("speed")
    yield Entry(OURS, lambda: motet(folder / "bfloat16", _operator_file(paths)), with_composed)
    if "quantize" in ModelConfig.model_fields:
        small = {name: size * INT4_BITS / 16 for name, size in with_composed.items()}
        yield Entry(INT4, lambda: motet(folder / "int4", _operator_file(paths, quantize="int4")), small)
    else:
        print(f"{INT4} left out: this version's operator file has no `quantize`")
    if setup.vllm_python is not None:
        python = str(setup.vllm_python)
        content = _operator_file(paths)
        yield Entry(VLLM, lambda: motet(folder / "vllm", content, "--engine", "vllm", python=python), with_composed)
    else:
        print(f"{VLLM} left out: no --vllm-python")
    yield Entry(TRANSFORMERS, lambda: transformers(paths, setup.threads), read)
    yield from _llama(setup)


def _llama(setup: Setup) -> Iterator[Entry]:
    files = {name: (setup.models / f"{name}.gguf").resolve() for name in (LARGE, SMALL)}
    absent = [str(file) for file in (*files.values(), LLAMA_CPP) if not file.is_file()]
    if setup.llama is None or absent:
        print(f"{LLAMA} left out: {'no --llama' if setup.llama is None else ', '.join(absent) + ' does not exist'}")
        return
    contestant = LlamaCpp(setup.llama, files, setup.threads)
    yield Entry(LLAMA, lambda: nullcontext(contestant), {name: float(f.stat().st_size) for name, f in files.items()})


def _operator_file(paths: Mapping[str, Path], **fields: str) -> dict[str, Any]:
    contrastive = {"strategy": "contrastive", "base": LARGE, "amateur": SMALL}
    return {
        "models": {name: {"path": str(path), **fields} for name, path in paths.items()},
        "compositions": {COMPOSED: contrastive},
        "engine": {"dtype": "bfloat16", "kv_cache_gib": 1.0, "max_running": max(BATCHES), "max_model_len": 512},
    }


def _results(setup: Setup, figures: Figures, entries: list[Entry], reading: float) -> dict[str, Any]:
    return {
        "threads": setup.threads,
        "bandwidth": reading,
        "bytes per step": {entry.name: entry.bytes for entry in entries},
        "tokens per second": {name: statistics.median(values) for name, values in figures.items()},
        "ratios": _ratios(figures),
        "rounds": figures,
    }


def _ratios(figures: Figures) -> dict[str, float]:
    """Of every contestant over every other, of the same model and batch; and of a composition over members that take
    turns."""
    found: dict[str, float] = {}
    for name, values in figures.items():
        contestant, model, batch = name.rsplit(", ", 2)
        for other in NAMES[NAMES.index(contestant) + 1 :]:
            if theirs := figures.get(f"{other}, {model}, {batch}"):
                found[f"{contestant} / {other}, {model}, {batch}"] = median_of_ratios(values, theirs)
        if model == COMPOSED:
            turns = _in_turns(figures, contestant, batch)
            found[f"{contestant}, {COMPOSED} / members in turns, {batch}"] = median_of_ratios(values, turns)
    return found


def _in_turns(figures: Figures, contestant: str, batch: str) -> list[float]:
    large, small = (figures[f"{contestant}, {model}, {batch}"] for model in (LARGE, SMALL))
    return [1 / (1 / a + 1 / b) for a, b in zip(large, small, strict=True)]


def _report(figures: Figures) -> Iterator[str]:
    for name, values in figures.items():
        yield f"{name:48} {statistics.median(values):8.1f} tokens/s"
    ratios = _ratios(figures)
    for ours, other, aims in AIMS:
        for model in (LARGE, SMALL):
            for batch, aim in aims.items():
                name = f"{ours} / {other}, {model}, {batch}"
                if name in ratios:
                    yield judged(name, ratios[name], aim)
    for name, value in ratios.items():
        if "in turns" in name:
            yield judged(name, value, COMPOSED_AIM)
