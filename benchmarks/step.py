"""What a composed step costs over its members' bare forwards, and against the published sequential loop.

    python -m benchmarks.step --size small --out benchmarks/results/step-small.json

Theory: decoding one token reads every member's weights once, so the floor of a composed step is the sum of its
members' own forwards (here: the same members, same slots, same batch, nothing composed). The baseline is the loop of
the published proxy-tuning code, re-implemented: three Hugging Face models with their own caches, called one after
another on a left-padded static batch, softmax of the combined logits, multinomial.

All variants run in turn in one process; a figure is the median over rounds of the mean step of `--steps` steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from benchmarks.common import environment, interleave, make_family, median_of_ratios, report, seconds
from motet.composers.plan import Plan, Stream
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.torch import EngineCore, EngineSettings, Member, load_member
from motet.engines.torch.model import ModelWork

PLAN = Plan((Stream("base", "base"), Stream("expert", "expert", 1.0), Stream("antiexpert", "antiexpert", -1.0)))
PROMPT = 64


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds per step, one entry per round."""

    batch: int
    bare: list[float]
    composed: list[float]
    naive: list[float]

    def summary(self) -> dict[str, float]:
        return {
            "batch": self.batch,
            "bare_ms": 1e3 * statistics.median(self.bare),
            "composed_ms": 1e3 * statistics.median(self.composed),
            "naive_ms": 1e3 * statistics.median(self.naive),
            "composed_over_bare": median_of_ratios(self.composed, self.bare),
            "naive_over_composed": median_of_ratios(self.naive, self.composed),
        }


def prompts(count: int, vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return cast("list[list[int]]", torch.randint(3, vocab, (count, PROMPT), generator=generator).tolist())


Combine = Callable[[Sequence[Tensor]], Tensor]  # every model's next-token logits, (B, V) each → the composed ones


def proxy_tuned(logits: Sequence[Tensor]) -> Tensor:
    """Of base, expert and anti-expert, as the paper's code has it."""
    return logits[0] + 1.0 * (logits[1] - logits[2])


class NaiveLoop:
    """The published loop: one static batch, the models in sequence, every step on full-width logits."""

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        batch: Sequence[Sequence[int]],
        combine: Combine = proxy_tuned,
        *,
        is_greedy: bool = False,
    ) -> None:
        self.models = models
        self.combine = combine
        self.is_greedy = is_greedy
        self.caches = [DynamicCache(config=model.config) for model in models]
        self.tokens = torch.tensor(batch)
        self.mask = torch.ones_like(self.tokens)

    def step(self) -> None:
        logits: list[Tensor] = []
        for model, cache in zip(self.models, self.caches, strict=True):
            output = model(
                input_ids=self.tokens,
                attention_mask=self.mask,
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
            logits.append(output.logits[:, -1])
        combined = self.combine(logits).float()
        self.tokens = combined.argmax(-1, True) if self.is_greedy else torch.multinomial(combined.softmax(-1), 1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], -1)


def engine_at(
    members: dict[str, Member],
    batch: Sequence[Sequence[int]],
    max_tokens: int,
    plan: Plan = PLAN,
    settings: EngineSettings | None = None,
) -> EngineCore:
    """An engine whose requests have all been prefilled; every stream reads the same prompt."""
    for member in members.values():
        member.cache.clear()
    core = EngineCore(members, settings)
    for prompt in batch:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        core.add(core.group(GenerationRequest("bench", plan, (tuple(prompt),) * len(plan.streams), sampling)))
    while any(choice.num_generated == 0 for choice in core.scheduler.running) or core.scheduler.waiting:
        core.step()
    return core


def finish(core: EngineCore) -> None:
    core.drop(list(core.scheduler.running))


def bare_steps(core: EngineCore, steps: int) -> None:
    """The members' forwards of `steps` decoding steps, and nothing else."""
    for t in range(steps):
        for member in core.members.values():
            slots = member.cache.active
            member.forward([ModelWork(slot.index, len(slot.tokens) + t, [5], 1) for slot in slots])


def step_variants(members: dict[str, Member], plan: Plan, batch: int, steps: int) -> dict[str, Callable[[], float]]:
    """Seconds per decoding step, `composed` and of the members' `bare` forwards."""
    contexts = prompts(batch, next(iter(members.values())).vocab_size)

    def timed(run: Callable[[EngineCore], object]) -> float:
        core = engine_at(members, contexts, steps + 8, plan)
        spent = seconds(lambda: run(core))
        finish(core)
        return spent / steps

    return {
        "bare": lambda: timed(lambda core: bare_steps(core, steps)),
        "composed": lambda: timed(lambda core: [core.step() for _ in range(steps)]),
    }


@torch.inference_mode()
def measure_step(
    members: dict[str, Member], models: Sequence[PreTrainedModel], batch: int, steps: int, rounds: int
) -> Figures:

    def naive() -> float:
        loop = NaiveLoop(models, prompts(batch, members["base"].vocab_size))
        loop.step()
        return seconds(lambda: [loop.step() for _ in range(steps)]) / steps

    return Figures(batch, **interleave({**step_variants(members, PLAN, batch, steps), "naive": naive}, rounds))


@torch.inference_mode()
def measure_concurrent(
    members: dict[str, Member], models: Sequence[PreTrainedModel], tokens: int, rounds: int, requests: int = 16
) -> dict[str, float]:
    """Whole requests, prompt included: all at once in the engine, against one after another in the loop."""
    batch = prompts(requests, members["base"].vocab_size)

    def together() -> float:
        def run() -> None:
            core = engine_at(members, batch, tokens)
            while core.step():
                pass

        return seconds(run)

    def one_by_one() -> float:
        def run() -> None:
            for prompt in batch:
                loop = NaiveLoop(models, [prompt])
                for _ in range(tokens):
                    loop.step()

        return seconds(run)

    figures = interleave({"together": together, "one_by_one": one_by_one}, rounds)
    return {
        "requests": requests,
        "prompt": PROMPT,
        "tokens": tokens,
        "together_s": statistics.median(figures["together"]),
        "one_by_one_s": statistics.median(figures["one_by_one"]),
        "speedup": median_of_ratios(figures["one_by_one"], figures["together"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "medium"), default="small")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="generated per request where whole requests are timed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the random members are kept (a temporary folder otherwise)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        paths = make_family(options.folder or Path(temporary), options.size)
        members = {name: load_member(name, str(path)) for name, path in paths.items()}
        models = [LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval() for path in paths.values()]
    weights = sum(parameter.numel() * parameter.element_size() for model in models for parameter in model.parameters())
    print(environment())
    print(f"theory: {weights / 1e6:.0f} MB of weights are read per step by all members together")
    results: dict[str, Any] = {"size": options.size, "weight_bytes": weights, "step": []}
    for batch in options.batches:
        figures = measure_step(members, models, batch, options.steps, options.rounds).summary()
        results["step"].append(figures)
        print("  ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)
    results["concurrent"] = measure_concurrent(members, models, options.tokens, max(2, options.rounds // 2))
    print("  ".join(f"{key} {value:.3g}" for key, value in results["concurrent"].items()))
    report("step", results, options.out)


if __name__ == "__main__":
    main()
