"""Whether drafts pay for composed models in vLLM: answers per second with and without, same answers.

    python -m benchmarks.speculation --out benchmarks/results/speculation.json

The demo family's questions, greedy, through the composition of its larger base with its tuned expert (one prompt for
all members). Theory: with acceptance rate a per guess and k guesses, a step of the members yields
(1 − a^(k+1)) / (1 − a) tokens and costs one pass over k + 1 positions instead of one, and k passes of the drafting
expert: where reading weights is what a pass costs, the ratio of time is (1 + k · expert / members) / tokens per step
(Leviathan et al. 2023, arXiv:2211.17192). The engines run in turn in one process; a figure is the median over rounds.

Runs in the environment of `make test-vllm`; the family is that of `motet demo`, made where it is not there yet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from transformers import AutoTokenizer

from benchmarks.common import environment, median_of_ratios, report
from benchmarks.vllm import interleaved
from motet.composers.plan import Plan
from motet.composers.spec import build_plan, parse_composition
from motet.demo.family import build_family
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.vllm.engine import VllmEngine
from motet.engines.vllm.internals import check_version
from motet.engines.vllm.loading import Checkpoint, start
from motet.models.facts import read_facts

MEMBERS = ("large", "small", "small-chat")
PROXY = {"strategy": "proxy_tuning", "expert": "small-chat", "antiexpert": "small"}
DRAFTERS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
    "expert": {"model": "small-chat", "num_speculative_tokens": 3},
}


def tokenizer_of(folder: Path) -> Any:
    return cast(Any, AutoTokenizer).from_pretrained(folder)


def prompts(family: Path, count: int) -> list[tuple[int, ...]]:
    """Held-out questions as the expert reads them."""
    tokenizer = tokenizer_of(family / "small-chat")
    lines = (family / "evaluation" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    texts = [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines]
    rendered = [tokenizer.apply_chat_template(text, add_generation_prompt=True, tokenize=False) for text in texts]
    return [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered]


async def answered(
    engine: VllmEngine, plan: Plan, questions: list[tuple[int, ...]], batch: int, seen: dict[str, Any], name: str
) -> float:
    """Seconds for all questions, `batch` at a time; notes the answers and the engine's steps."""
    sampling = SamplingParams(max_tokens=32, temperature=0.0)
    room = asyncio.Semaphore(batch)

    async def ask(number: int, question: tuple[int, ...]) -> list[int]:
        async with room:
            request = GenerationRequest(f"q{number}", plan, (question,) * len(plan.streams), sampling)
            return [output.token async for output in engine.generate(request)]

    before = engine.tally.steps
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(i, question) for i, question in enumerate(questions)))
    seconds = time.perf_counter() - began
    seen[name] = {"answers": answers, "steps": engine.tally.steps - before}
    return seconds


async def measure(engines: Mapping[str, VllmEngine], plan: Plan, family: Path, options: Any) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    for batch in options.batches:
        questions = prompts(family, options.questions * (2 if batch > 1 else 1))
        seen: dict[str, Any] = {}
        variants = {
            name: partial(answered, engine, plan, questions, batch, seen, name) for name, engine in engines.items()
        }
        figures = await interleaved(variants, options.rounds)
        assert all(told["answers"] == seen["off"]["answers"] for told in seen.values()), "drafts changed an answer"
        tokens = sum(map(len, seen["off"]["answers"]))
        for name, engine in engines.items():
            stats = engine.stats()
            results.append(
                {
                    "batch": batch,
                    "drafter": name,
                    "tokens_per_second": tokens / statistics.median(figures[name]),
                    "speed_over_off": median_of_ratios(figures["off"], figures[name]),
                    "tokens_per_step": tokens / seen[name]["steps"],
                    "accepted": stats.accepted_tokens / stats.draft_tokens if stats.draft_tokens else None,
                }
            )
            print("  ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    return results


async def run(family: Path, options: argparse.Namespace) -> dict[str, Any]:
    tokenizer = tokenizer_of(family / "large")
    infos = {
        name: read_facts(
            name, str(family / name), None, dtype="auto", device="vllm", vocab_size=len(tokenizer), max_model_len=256
        )
        for name in MEMBERS
    }
    sources = {name: Checkpoint(str(family / name)) for name in MEMBERS}
    plan = build_plan(parse_composition(PROXY), "large", known=list(MEMBERS), token_id=lambda _: None)
    engines: dict[str, VllmEngine] = {}
    for name, drafter in DRAFTERS.items():
        args = {"enforce_eager": True} | ({"speculative_config": drafter} if drafter else {})
        engines[name] = start(sources, infos, max_running=16, engine_args=args)
    results = await measure(engines, plan, family, options)
    for engine in engines.values():
        await engine.close()
    return {
        "parameters": {name: infos[name].num_parameters for name in MEMBERS},
        "vllm": check_version(),
        "runs": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", type=Path, help="a demo family's folder, by default that of seed 0")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(environment())
    family = options.family or build_family(0)
    report("speculation", asyncio.run(run(family, options)), options.out)


if __name__ == "__main__":
    main()
