"""Tokens per second and peak memory of `motet train` against TRL's SFTTrainer.

    python -m benchmarks.trainer --out benchmarks/results/trainer.json

Both train the same random Llama on the same documents in the same order, padded, with the same optimiser, precision
and LoRA; that they compute the same is shown by their losses. Every figure comes from a process of its own, so that
a process's peak memory is that of one trainer; the trainers take turns, and ratios are taken round by round. Tokens
are those of the documents without padding, seconds those between the ends of the last warm-up step and the last step.
Tokens per second of processor time are given beside them: other work on the machine disturbs them less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import environment, median_of_ratios, report, word_tokenizer

LR, BETAS, CLIP = 1e-4, (0.9, 0.98), 1.0
LORA_RANK, LORA_ALPHA = 16, 32
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """A model, how it is tuned, and documents of `prompt` + `answer` tokens (least, most)."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    tuning: str
    precision: str
    rows: int
    prompt: tuple[int, int]
    answer: tuple[int, int]
    warm_up: int
    steps: int


# The demo world's larger model on rows like its own; a Llama of 110 million parameters on longer ones.
CASES = {
    "demo-large-full-float32": Case(256, 3, 4, 768, 2048, "full", "float32", 16, (8, 20), (6, 24), 10, 60),
    "demo-large-full-bfloat16": Case(256, 3, 4, 768, 2048, "full", "bfloat16", 16, (8, 20), (6, 24), 10, 60),
    "llama-110m-lora-bfloat16": Case(768, 12, 12, 2048, 32_000, "lora", "bfloat16", 4, (32, 96), (32, 128), 1, 5),
}


def prepare(folder: Path, case: Case) -> None:
    """Writes the model and train.jsonl."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    word_tokenizer(case.vocab).save_pretrained(folder / "model")
    generator = random.Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(case.rows * case.steps):
            row = {name: _words(generator, case.vocab, getattr(case, key)) for name, key in _COLUMNS.items()}
            file.write(json.dumps(row) + "\n")


_COLUMNS = {"prompt": "prompt", "completion": "answer"}


def _words(generator: random.Random, vocab: int, length: tuple[int, int]) -> str:
    return "".join(f" t{generator.randrange(3, vocab)}" for _ in range(generator.randint(*length)))


def read_rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def tokens_of(folder: Path, case: Case) -> int:
    """Tokens of the measured steps, each document's end of sequence included."""
    rows = read_rows(folder)[case.rows * case.warm_up :]
    return sum(len((row["prompt"] + row["completion"]).split()) + 1 for row in rows)


@dataclass
class Stopwatch:
    """When each step ended, and the memory before the first."""

    before: int = 0
    ends: list[tuple[float, float]] | None = None  # on the clock, and of processor time

    def begin(self) -> None:
        self.before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        self.ends = []

    def step(self) -> None:
        assert self.ends is not None, "begun"
        self.ends.append((time.perf_counter(), time.process_time()))

    def figures(self, folder: Path, case: Case, loss: float) -> dict[str, float]:
        assert self.ends is not None, "begun"
        assert len(self.ends) == case.steps, f"{len(self.ends)} steps, not {case.steps}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wall, busy = (end - start for start, end in zip(self.ends[case.warm_up - 1], self.ends[-1], strict=True))
        tokens = tokens_of(folder, case)
        return {
            "tokens_per_second": tokens / wall,
            "tokens_per_processor_second": tokens / busy,
            "peak_mib": peak / MIB,
            "training_mib": (peak - self.before) / MIB,  # beyond what stood before the first step
            "loss": loss,
        }


def ours(folder: Path, case: Case) -> dict[str, float]:
    from motet.training.recipe import Recipe
    from motet.training.run.session import Session

    tuning = {"type": "lora", "r": LORA_RANK, "alpha": LORA_ALPHA} if case.tuning == "lora" else {"type": "full"}
    recipe = Recipe.model_validate({
        "output": folder / "out",
        "model": {"path": "model"},
        "tuning": tuning,
        "objective": {"type": "sft"},
        "data": {"train": {"files": ["train.jsonl"], "shuffle": False}},
        "batch": {"rows": case.rows, "max_length": 1024},
        "optimizer": {"type": "adamw", "lr": LR, "betas": BETAS, "clip": CLIP},
        "schedule": {"steps": case.steps, "warmup": 0, "decay": 0.0},
        "precision": case.precision,
    })  # fmt: skip
    session, watch, losses = Session(recipe, folder), Stopwatch(), list[float]()
    watch.begin()
    for step in session.loop.steps(0, lambda step: True):
        losses.append(step.loss.item())
        watch.step()
    return watch.figures(folder, case, statistics.fmean(losses))


def trl(folder: Path, case: Case) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    watch = Stopwatch()

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    arguments: Any = SFTConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=case.rows,
        max_steps=case.steps,
        max_length=1024,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        weight_decay=0.0,
        use_cpu=not torch.cuda.is_available(),
        bf16=case.precision == "bfloat16",
        gradient_checkpointing=False,  # ours keeps activations, too
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )
    rank = LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    made = cast(Callable[..., Any], SFTTrainer)
    trainer = made(
        model=LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(read_rows(folder)),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Watch()],
        peft_config=rank if case.tuning == "lora" else None,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return watch.figures(folder, case, statistics.fmean(losses))


TRAINERS = {"ours": ours, "trl": trl}


def measure(trainer: str, name: str, folder: Path) -> dict[str, float]:
    """One trainer's figures, from a process of its own."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "benchmarks.trainer", "--worker", trainer, "--case", name, "--folder", str(folder)]
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{trainer} on {name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each trainer, and of the rounds' ratios."""

    def column(trainer: str, key: str) -> list[float]:
        return [figures[key] for figures in rounds[trainer]]

    medians = {
        trainer: {key: statistics.median(column(trainer, key)) for key in figures[0]}
        for trainer, figures in rounds.items()
    }
    return {
        **medians,
        "rounds": len(rounds["ours"]),
        "speed_ratio": median_of_ratios(column("ours", "tokens_per_second"), column("trl", "tokens_per_second")),
        "processor_ratio": median_of_ratios(
            column("ours", "tokens_per_processor_second"), column("trl", "tokens_per_processor_second")
        ),
        "memory_ratio": median_of_ratios(column("ours", "peak_mib"), column("trl", "peak_mib")),
        "training_memory_ratio": median_of_ratios(column("ours", "training_mib"), column("trl", "training_mib")),
    }


def compare(name: str, rounds: int) -> dict[str, Any]:
    """The trainers in turn, each round beginning with the other one."""
    case, figures = CASES[name], {trainer: list[dict[str, float]]() for trainer in TRAINERS}
    with TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, case)
        for number in range(rounds):
            for trainer in sorted(TRAINERS, reverse=bool(number % 2)):
                found = measure(trainer, name, folder)
                figures[trainer].append(found)
                wall, busy = found["tokens_per_second"], found["tokens_per_processor_second"]
                print(f"{name}: {trainer} {wall:.0f} tokens/s, {busy:.0f} per processor second", file=sys.stderr)
    return {"case": asdict(case), **summary(figures)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="by default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    names: list[str] = chosen.case or list(CASES)
    if chosen.worker:
        print(json.dumps(TRAINERS[chosen.worker](chosen.folder, CASES[names[0]])))
        return
    print(json.dumps(asdict(environment())), file=sys.stderr)
    report("trainer", {name: compare(name, chosen.rounds) for name in names}, chosen.out)


if __name__ == "__main__":
    main()
