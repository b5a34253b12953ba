"""What speculation is worth on real checkpoints: contrastive decoding of the 1.5B against the 0.5B, which drafts.

GSM8K's questions as chats, greedy, bfloat16, one at a time and sixteen at once: the composition with speculation, the
same without, the plain 1.5B without, and, one at a time, the loop that papers publish: transformers' models one after
the other. All take turns on the same questions in one process; ratios are taken within
rounds, and whole requests are timed, prompts included. With `--quantize int4` both models have 4 bits, and llama.cpp's
plain 1.5B, on a 4-bit GGUF file beside the checkpoint, takes its turn as well: its tokens alone are timed, no prompt,
and set against those of ours behind the first. With `--draft-quantize` both models have weights in fewer bits beside
their own, and what guesses with those takes its turn: the composition, and the plain 1.5B, which then guesses for
itself. `--humaneval` asks HumanEval's tasks instead. `--expert` measures proxy-tuning instead: the 1.5B steered by a
LoRA expert of the 0.5B, which `gsm8k` leaves in its work folder, and whose guesses those are then.

Theory: a plain composed step costs one forward of each member. With g guesses a step costs g + 1 forwards of the draft
and one of the other over g + 1 positions, and yields (1 − a^(g+1)) / (1 − a) tokens where guesses are right with
probability a (Leviathan et al. 2023, arXiv:2211.17192). The forwards are timed in the same run; the ceiling is that of
the best g at the acceptance that was met, every guess alike. How sure the draft is tells more: guessing stops where it
is not, so more than the ceiling is possible. It is told for contrastive decoding, whose members are two streams.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.common import median_of_ratios, seconds
from benchmarks.quantised import llama_cpp
from benchmarks.real.judge import judged
from benchmarks.real.questions import TEST, read_questions, read_tasks
from benchmarks.real.rounds import Rounds
from benchmarks.real.setup import LARGE, SMALL, Setup
from benchmarks.step import NaiveLoop, proxy_tuned
from motet.composers.plan import Plan, single
from motet.composers.spec import build_plan, parse_composition
from motet.engines.base import GenerationRequest, SamplingParams
from motet.engines.drafts import MOST_GUESSES, OFF, Speculation
from motet.engines.torch import EngineCore, Member, Model, attach_adapter, load_member
from motet.engines.torch.model import ModelWork
from motet.operator.backbones import low_ranks
from motet.operator.sources import Source

GUESSING, COMPOSED, PLAIN = "composed, speculating", "composed", "large alone"
ROUGH, PLAIN_ROUGH = "composed, speculating with fewer bits", "large alone, speculating with fewer bits"
LOOP = "the published loop"
LLAMA = "llama.cpp, large alone"
EXPERT = "expert"
NAMES = (ROUGH, GUESSING, COMPOSED, PLAIN_ROUGH, PLAIN, LOOP)
GUESSERS = (ROUGH, GUESSING, PLAIN_ROUGH)
TOKENS = {1: 2.0, 16: 0.5}  # of the setup's tokens, at each batch: long answers alone, short ones together
# a speculating composition's tokens per second over another's
AIMS = ((COMPOSED, 1, 1.7), (PLAIN, 1, 1.3), (COMPOSED, 16, 1.0), (LOOP, 1, 2.0), (LLAMA, 1, 1.0))
EXPECTED = """\
expected: at batch 1 the 0.5B's guesses are right nine times in ten, which makes the composition about twice as fast as
without and faster than the 1.5B alone; at batch 16 arithmetic bounds a forward, and guessing is off."""


def run(setup: Setup, wanted: frozenset[str]) -> dict[str, Any]:
    """Rounds of all variants; the file of rounds is written after each, and continued."""
    print(EXPECTED, flush=True)
    parts = [setup.humaneval and "humaneval", setup.expert and "proxy-tuning", setup.quantize]
    stage = "-".join(["speculation", *(part for part in parts if part)])
    key, folder = [setup.size.tokens, setup.threads, setup.dtype, setup.draft_quantize], setup.folder(stage)
    key += [] if setup.expert is None else [str(setup.expert)]
    wanted_rounds = {1: setup.size.rounds, 16: max(1, setup.size.rounds // 2)}
    kept = {batch: Rounds(folder / f"rounds-{batch}.json", key, count) for batch, count in wanted_rounds.items()}
    if any(rounds.missing for rounds in kept.values()):
        bench = Bench(setup)
        for batch, rounds in kept.items():
            for _ in range(rounds.missing):
                rounds.add(bench.round(batch, len(rounds.rows), wanted))
                setup.save(stage, _results(kept))
    results = _results(kept)
    for line in _report(results):
        print(line)
    return setup.save(stage, results)


class Bench:
    """Both models, one engine without and one with speculation over them."""

    def __init__(self, setup: Setup) -> None:
        dtype = torch.float32 if setup.dtype == "float32" else torch.bfloat16
        paths = {name: str(setup.model(name)) for name in (LARGE, SMALL)}
        self.members: dict[str, Member] = {
            name: load_member(name, path, dtype=dtype, quantization=setup.quantize, draft=setup.draft_quantize)
            for name, path in paths.items()
        }
        models: dict[str, Model] = {**self.members}
        self._rough_prices = {name: member.draft_prices for name, member in self.members.items()}
        self._tokenizer: Any = cast(Any, AutoTokenizer).from_pretrained(paths[LARGE])
        self._setup = setup
        written = {"strategy": "contrastive", "amateur": SMALL}
        if setup.expert is not None:
            source = Source(str(setup.expert), base=paths[SMALL], backbone=SMALL)
            models[EXPERT] = attach_adapter(EXPERT, self.members[SMALL], low_ranks(source))
            written = {"strategy": "proxy_tuning", "expert": EXPERT, "antiexpert": SMALL}
        composed = build_plan(parse_composition(written), LARGE, known=list(models), token_id=lambda _: None)
        self._names = [name for name in NAMES[:-1] if setup.draft_quantize or name not in (ROUGH, PLAIN_ROUGH)]
        self._plans = {name: single(LARGE) if name in (PLAIN, PLAIN_ROUGH) else composed for name in self._names}
        self._cores = {name: EngineCore(models) for name in self._names}  # each learns what its own guesses bring
        self._combine = contrasted if setup.expert is None else proxy_tuned
        self._published = [] if setup.quantize else list(_published(paths, setup.expert, dtype))
        for name in self._names:  # nothing is built or learnt for the first time where it is timed
            self._answers(name, self._contexts(0, 1), 24)

    def round(self, batch: int, number: int, wanted: frozenset[str]) -> dict[str, Any]:
        """Figures of every variant on the same questions, and what a forward costs at this moment."""
        contexts = self._contexts(number * batch, batch)
        tokens = int(self._setup.size.tokens * TOKENS[batch])
        found: dict[str, Any] = {"forwards": self._forwards() if batch == 1 and not self._setup.expert else None}
        names = [*self._names, LOOP] if self._published and batch == 1 else self._names
        first = number % len(names)  # no variant is always the first
        for name in (*names[first:], *names[:first]):
            if name in wanted or not wanted:
                found[name] = (self._looped if name == LOOP else partial(self._answers, name))(contexts, tokens)
                print(f"  {name}, {batch}: {found[name]['tokens per second']:.2f} tokens/s", flush=True)
        if batch == 1 and self._setup.quantize == "int4" and self._setup.llama is not None:
            found[LLAMA] = {"tokens per second": self._llama_cpp(self._setup.llama, tokens)}
            print(f"  {LLAMA}: {found[LLAMA]['tokens per second']:.2f} tokens/s", flush=True)
        return found

    def _llama_cpp(self, folder: Path, tokens: int) -> float:
        file = self._setup.models / f"{LARGE}.gguf"
        return llama_cpp(file, folder, sequences=1, prompt=64, tokens=tokens, threads=self._setup.threads)

    @torch.inference_mode()
    def _looped(self, contexts: Sequence[tuple[int, ...]], tokens: int) -> dict[str, Any]:
        loop = NaiveLoop(self._published, contexts, self._combine, is_greedy=True)
        return {"tokens per second": tokens / seconds(lambda: [loop.step() for _ in range(tokens)])}

    def _contexts(self, start: int, count: int) -> list[tuple[int, ...]]:
        if self._setup.humaneval is None:
            asked = [question.question for question in read_questions(self._setup.gsm8k, TEST, start, count)]
        else:
            asked = read_tasks(self._setup.humaneval, start, count)
        chats = [[{"role": "user", "content": text}] for text in asked]
        texts = [self._tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
        return [tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    def _answers(self, name: str, contexts: Sequence[tuple[int, ...]], tokens: int) -> dict[str, Any]:
        """All requests at once, no prefix cached."""
        for number, member in self.members.items():
            member.cache.clear()
            member.draft_prices = None if name == GUESSING else self._rough_prices[number]
        plan, core = self._plans[name], self._cores[name]
        before = core.stats()
        wish = Speculation() if name in GUESSERS else OFF
        groups = [core.group(_request(plan, context, tokens, wish)) for context in contexts]
        began, first, written = time.perf_counter(), None, 0
        for group in groups:
            core.add(group)
        while core.step():
            if first is None and all(group.choices[0].generated for group in groups):
                first, written = time.perf_counter(), sum(group.choices[0].num_generated for group in groups)
        now, after = time.perf_counter(), core.stats()
        spent, decoding = now - began, now - (first or began)
        return {
            "tokens per second": tokens * len(groups) / spent,
            "behind the prompts": (tokens * len(groups) - written) / decoding,
            "blocks": after.drafts - before.drafts,
            "guesses": after.draft_tokens - before.draft_tokens,
            "right": after.accepted_tokens - before.accepted_tokens,
            "answers": [group.choices[0].generated for group in groups],
        }

    @torch.inference_mode()
    def _forwards(self) -> dict[str, dict[str, float]]:
        """Seconds of a forward of each model by its positions, the median of three."""
        found: dict[str, dict[str, float]] = {}
        for name, member in self.members.items():
            member.cache.resize(1, 64)
            counts = range(1, MOST_GUESSES + 2) if name == LARGE else (1,)
            found[name] = {
                str(count): statistics.median(seconds(partial(member.forward, [_work(count)])) for _ in range(3))
                for count in counts
            }
        return found


def contrasted(logits: Sequence[Tensor]) -> Tensor:
    """Of expert and amateur, at the defaults: α = 0.1, β = 0.5 (O'Brien and Lewis 2023, arXiv:2309.09117)."""
    expert, amateur = logits
    is_plausible = expert >= expert.max(-1, keepdim=True).values + math.log(0.1)
    return torch.where(is_plausible, (1 + 0.5) * expert - 0.5 * amateur, -math.inf)


def _published(paths: Mapping[str, str], expert: Path | None, dtype: torch.dtype) -> Iterator[PreTrainedModel]:
    """The composition's models as transformers loads them, the base first."""
    load = partial(cast(Any, AutoModelForCausalLM).from_pretrained, dtype=dtype)
    yield load(paths[LARGE])
    if expert is not None:
        yield PeftModel.from_pretrained(load(paths[SMALL]), str(expert)).merge_and_unload()
    yield load(paths[SMALL])


def _request(plan: Plan, context: tuple[int, ...], tokens: int, wish: Speculation) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return GenerationRequest("bench", plan, (context,) * len(plan.streams), sampling, speculation=wish)


def _work(count: int) -> ModelWork:
    return ModelWork(0, 0, [5] * count, count)


def _results(kept: Mapping[int, Rounds]) -> dict[str, Any]:
    return {
        "models": [LARGE, SMALL],
        "batches": {str(batch): _summary(batch, rounds.rows) for batch, rounds in kept.items() if rounds.rows},
    }


def _summary(batch: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians, ratios within rounds, what became of the guesses, and how often answers differ in rounding."""
    names = [name for name in (*NAMES, LLAMA) if all(name in row for row in rows)]
    rates = {name: [row[name]["tokens per second"] for row in rows] for name in names}
    return {
        "rounds": len(rows),
        "tokens per second": {name: statistics.median(values) for name, values in rates.items()},
        "each round": rates,
        "speculating": {name: _guesser(name, batch, rows, rates) for name in names if name in GUESSERS},
    }


def _guesser(
    name: str, batch: int, rows: Sequence[Mapping[str, Any]], rates: Mapping[str, list[float]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "over": {other: median_of_ratios(rates[name], own) for other, own in rates.items() if other != name},
        **{part: sum(row[name][part] for row in rows) for part in ("blocks", "guesses", "right")},
    }
    if LLAMA in rates:
        decoding = [row[name]["behind the prompts"] for row in rows]
        found["behind the prompts"] = statistics.median(decoding)
        found["over"][LLAMA] = median_of_ratios(decoding, rates[LLAMA])
    if (without := PLAIN if name == PLAIN_ROUGH else COMPOSED) in rates:
        pairs = [pair for row in rows for pair in zip(row[name]["answers"], row[without]["answers"], strict=True)]
        found["answers"] = len(pairs)
        found["answers that differ"] = sum(ours != theirs for ours, theirs in pairs)
    if name == GUESSING and found["guesses"] and rows[0]["forwards"]:
        ceiling = _ceiling(rows, found["right"] / found["guesses"])
        found["ceiling over composed"], found["guesses at the ceiling"] = ceiling
    return found


def _ceiling(rows: Sequence[Mapping[str, Any]], acceptance: float) -> tuple[float, int]:
    """The most that the measured forwards allow where every guess is right with this probability, and its number of
    guesses: (tokens per second over those without, guesses)."""

    def forward(name: str, count: int) -> float:
        return statistics.median(float(row["forwards"][name][str(count)]) for row in rows)

    plain, draft = forward(LARGE, 1) + forward(SMALL, 1), forward(SMALL, 1)
    return max(
        (sum(acceptance**i for i in range(g + 1)) * plain / ((g + 1) * draft + forward(LARGE, g + 1)), g)
        for g in range(1, MOST_GUESSES + 1)
    )


def _report(results: Mapping[str, Any]) -> Iterator[str]:
    for batch, found in results["batches"].items():
        for name, rate in found["tokens per second"].items():
            yield f"{name:40} {batch:>3} {rate:8.2f} tokens/s"
        for name, own in found["speculating"].items():
            aims = [(other, aim) for other, at, aim in AIMS if str(at) == batch and other in own["over"]]
            for other, aim in aims if name != PLAIN_ROUGH else ():
                yield judged(f"{name} over {other}, batch {batch}", own["over"][other], aim)
            if "ceiling over composed" in own:
                yield f"ceiling of equal guesses over composed: {own['ceiling over composed']:.2f}"
