"""What Motet claims, measured on real checkpoints.

    python -m benchmarks.real --models FOLDER --work FOLDER --results benchmarks/results
    python -m benchmarks.real --models FOLDER --only gsm8k --systems "expert alone" composed --train-answers 256

FOLDER holds gemma3-270m, qwen-0.5b and qwen-1.5b (Hugging Face folders; for `speed` their GGUF files beside them).
Stages: gsm8k (proxy-tuning), contrastive, unlearning, forgetting, speed, speculation. Whatever a stage has done lies
in the work folder and is not done again: trained models, replies, seeds. Results are written as they come.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch

from benchmarks.common import environment
from benchmarks.real import contrastive, forgetting, gsm8k, speculation, speed, unlearning
from benchmarks.real.setup import SIZES, Setup

STAGES = {
    "gsm8k": gsm8k,
    "contrastive": contrastive,
    "unlearning": unlearning,
    "forgetting": forgetting,
    "speed": speed,
    "speculation": speculation,
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.real", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--models", type=Path, required=True, help="the folder of the checkpoints")
    made.add_argument("--work", type=Path, default=Path("out/real"), help="where what is done is kept")
    made.add_argument("--results", type=Path, help="where real-STAGE.json are written (the work folder otherwise)")
    made.add_argument("--gsm8k", type=Path, default=Path("../shared/real/data"), help="the folder of GSM8K's files")
    made.add_argument("--only", nargs="+", choices=tuple(STAGES), default=list(STAGES), help="stages")
    made.add_argument("--systems", nargs="+", default=[], help="of the stages' systems, only these")
    made.add_argument("--size", choices=tuple(SIZES), default="full")
    made.add_argument("--train-answers", type=int, help="GSM8K answers to train on")
    made.add_argument("--questions", type=int, help="GSM8K questions to ask")
    made.add_argument("--seeds", type=int, help="seeds of unlearning and forgetting")
    made.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of served models")
    made.add_argument("--quantize", choices=("int8", "int4"), help="the models of `speculation`")
    made.add_argument("--draft-quantize", choices=("int8", "int4"), help="what models of `speculation` also guess with")
    made.add_argument("--humaneval", type=Path, help="HumanEval.jsonl.gz: `speculation` asks its tasks instead")
    made.add_argument(
        "--expert", type=Path, help="a LoRA expert over qwen-0.5b: `speculation` steers the 1.5B with it instead"
    )
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--vllm-python", type=Path, help="an interpreter that has vLLM, for its engine in `speed`")
    made.add_argument(
        "--llama", type=Path, help="where npm has installed node-llama-cpp, for `speed`, and for `speculation` in int4"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    known = [name for stage in options.only for name in STAGES[stage].NAMES]
    unknown = [name for name in options.systems if name not in known]
    if unknown:
        raise SystemExit(f"--systems: unknown {', '.join(map(repr, unknown))}; known: {', '.join(map(repr, known))}")
    torch.set_num_threads(options.threads)
    setup = _setup(options)
    print(environment())
    print(setup, flush=True)
    done: dict[str, object] = {}
    for stage in options.only:
        print(f"== {stage}", flush=True)
        done[stage] = STAGES[stage].run(setup, frozenset(options.systems))["results"]
    print(json.dumps({"benchmark": "real", "environment": dataclasses.asdict(environment()), "results": done}))


def _setup(options: argparse.Namespace) -> Setup:
    changes = {"answers": options.train_answers, "questions": options.questions, "seeds": options.seeds}
    size = dataclasses.replace(
        SIZES[options.size], **{name: value for name, value in changes.items() if value is not None}
    )
    return Setup(
        models=options.models,
        work=options.work,
        results=options.results or options.work,
        gsm8k=options.gsm8k,
        size=size,
        dtype=options.dtype,
        threads=options.threads,
        vllm_python=options.vllm_python,
        llama=options.llama,
        quantize=options.quantize,
        draft_quantize=options.draft_quantize,
        humaneval=options.humaneval,
        expert=options.expert,
    )


if __name__ == "__main__":
    main()
