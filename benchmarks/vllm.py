"""What a composed step costs inside vLLM, over the sum of its members' own vLLM steps, beside the embedded engine; and
what a plain request of one member costs there, over that member served alone.

    python -m benchmarks.vllm --size small --out benchmarks/results/vllm-small.json

Theory: one composite step reads every member's weights once, so its floor is the sum of the steps that vLLM takes for
each member alone; scheduling, sampling and the hand-over to the front end are paid once instead of three times, so a
composite may stay below 1. A step in which all requests read one member runs that one alone: its floor is the member's
own step. The members alone run in vLLM as it comes, with its own sampler and defaults. All engines of
a mode run in turn in one process (one asks while the others wait); a figure is the median over rounds of the mean step
of `--steps` steps of streamed requests.

Runs in the environment of `make test-vllm`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from benchmarks.common import SIZES, environment, make_family, median_of_ratios, report
from benchmarks.step import PLAN, prompts
from motet.composers.plan import Plan, single
from motet.engines.base import Engine, GenerationRequest, SamplingParams
from motet.engines.torch import TorchEngine, load_member
from motet.engines.vllm.client import SHUTDOWN_SECONDS
from motet.engines.vllm.internals import check_version, touch
from motet.engines.vllm.loading import Checkpoint, start
from motet.models.facts import read_facts
from motet.models.info import ModelInfo

LENGTH = 512
NAMES = itertools.count()
Figures = dict[str, list[float]]
# the prompt's number and tokens → one item per token
Stream = Callable[[int, list[int]], AsyncIterator[Any]]


def composed(engine: Engine, plan: Plan, steps: int) -> Stream:
    sampling = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)

    def stream(number: int, prompt: list[int]) -> AsyncIterator[Any]:
        contexts = (tuple(prompt),) * len(plan.streams)
        return engine.generate(GenerationRequest(f"b{number}", plan, contexts, sampling))

    return stream


def plain(llm: Any, steps: int) -> Stream:
    """A checkpoint in vLLM itself."""

    def stream(number: int, prompt: list[int]) -> AsyncIterator[Any]:
        params = touch("SamplingParams")(
            max_tokens=steps + 2,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            logprobs=0,  # as the composite reports them
            output_kind=touch("RequestOutputKind").DELTA,
        )
        return llm.generate({"prompt_token_ids": prompt}, params, f"b{number}-{next(NAMES)}")

    return stream


def plain_engine(path: Path, *, eager: bool) -> Any:
    args = touch("AsyncEngineArgs")(
        model=str(path),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=LENGTH,
        max_num_seqs=16,
        enforce_eager=eager,
        disable_log_stats=True,
    )
    return touch("AsyncLLM").from_engine_args(args)


async def step_seconds(stream: Stream, batch: int, steps: int, vocab: int) -> float:
    """Mean seconds between the tokens of `batch` streamed requests, from the first token of the last on."""
    firsts: list[float] = []
    lasts: list[float] = []

    async def run(number: int, prompt: list[int]) -> None:
        seen = 0
        async for _ in stream(number, prompt):
            seen += 1
            if seen == 2:
                firsts.append(time.perf_counter())
        lasts.append(time.perf_counter())

    await asyncio.gather(*(run(i, prompt) for i, prompt in enumerate(prompts(batch, vocab))))
    return (max(lasts) - max(firsts)) / steps


async def interleaved(variants: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> Figures:
    """As `common.interleave`, for coroutines."""
    figures: Figures = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            value = await run()
            if number:  # the first round warms up
                figures[name].append(value)
    return figures


async def measure(streams: Mapping[str, Stream], batch: int, steps: int, rounds: int, vocab: int) -> dict[str, float]:
    variants = {name: partial(step_seconds, stream, batch, steps, vocab) for name, stream in streams.items()}
    figures = await interleaved(variants, rounds)
    members = [name for name in figures if name.startswith("alone ")]
    alone: list[float] = [sum(parts, 0.0) for parts in zip(*(figures[name] for name in members), strict=True)]
    return {
        "batch": batch,
        "composite_ms": 1e3 * statistics.median(figures["composite"]),
        "members_ms": 1e3 * statistics.median(alone),
        "embedded_ms": 1e3 * statistics.median(figures["embedded"]),
        "composite_over_members": median_of_ratios(figures["composite"], alone),
        "embedded_over_composite": median_of_ratios(figures["embedded"], figures["composite"]),
        **{
            f"plain_{member}_over_alone": median_of_ratios(figures[f"plain {member}"], figures[f"alone {member}"])
            for member in (name.removeprefix("alone ") for name in members)
        },
    }


async def measure_mode(
    mode: str, paths: Mapping[str, Path], infos: Mapping[str, ModelInfo], options: argparse.Namespace
) -> dict[str, Any]:
    eager = mode == "eager"
    began = time.perf_counter()
    checkpoints = {name: Checkpoint(str(path)) for name, path in paths.items()}
    composite = start(checkpoints, infos, max_running=16, engine_args={"enforce_eager": eager})
    started = time.perf_counter() - began
    llms = {name: plain_engine(path, eager=eager) for name, path in paths.items()}
    embedded = TorchEngine({name: load_member(name, str(path)) for name, path in paths.items()})
    steps = options.steps
    streams = {"composite": composed(composite, PLAN, steps), "embedded": composed(embedded, PLAN, steps)}
    streams |= {f"plain {name}": composed(composite, single(name), steps) for name in paths}
    streams |= {f"alone {name}": plain(llm, steps) for name, llm in llms.items()}
    vocab = SIZES[options.size]["base"].vocab
    results: dict[str, Any] = {"mode": mode, "start_seconds": started, "step": []}
    for batch in options.batches:
        results["step"].append(await measure(streams, batch, steps, options.rounds, vocab))
        print(mode, "  ".join(f"{key} {value:.3g}" for key, value in results["step"][-1].items()), flush=True)
    streams.clear()
    while llms:
        await asyncio.to_thread(llms.popitem()[1].shutdown, SHUTDOWN_SECONDS)
    gc.collect()  # vLLM's destructor complains where the interpreter has gone before it
    await composite.close()
    await embedded.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the random members are kept (a temporary folder otherwise)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(environment())
    with TemporaryDirectory() as temporary:
        paths = make_family(options.folder or Path(temporary), options.size)
        vocab = SIZES[options.size]["base"].vocab
        infos = {
            name: read_facts(name, str(path), None, dtype="auto", device="vllm", vocab_size=vocab, max_model_len=LENGTH)
            for name, path in paths.items()
        }
        modes = [asyncio.run(measure_mode(mode, paths, infos, options)) for mode in options.modes]
    report("vllm", {"size": options.size, "vllm": check_version(), "modes": modes}, options.out)


if __name__ == "__main__":
    main()
