"""What a run of `benchmarks.real` was told, and how large its parts are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import environment
from motet.models.info import Quantization

LARGE, SMALL, GEMMA = "qwen-1.5b", "qwen-0.5b", "gemma3-270m"  # folders of --models


@dataclass(frozen=True, slots=True)
class Size:
    """`questions` are asked, `answers` trained on; `authors` are invented, half of them forgotten; `steps` is the share
    of the unlearning recipes' steps that are done; `tokens` are generated per request where speed is measured."""

    questions: int
    answers: int
    authors: int
    seeds: int
    steps: float
    rounds: int
    tokens: int


SIZES = {
    "smoke": Size(questions=4, answers=12, authors=4, seeds=1, steps=0.02, rounds=1, tokens=24),
    "small": Size(questions=100, answers=256, authors=20, seeds=1, steps=0.25, rounds=3, tokens=32),
    # few authors: on one processor core, unlearning spends its hours on the 262,144 tokens of every answer's softmax
    "core": Size(questions=100, answers=256, authors=6, seeds=3, steps=0.25, rounds=3, tokens=32),
    "full": Size(questions=100, answers=1000, authors=20, seeds=3, steps=0.25, rounds=5, tokens=64),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """`models`: the folder of checkpoints; `work`: what is done already lies there; `results`: where results are
    written; `gsm8k`, `humaneval`: their data; `vllm_python`: an interpreter that has vLLM; `llama`: where
    node-llama-cpp lies; `quantize`, `draft_quantize`, `expert`: of `speculation`'s models."""

    models: Path
    work: Path
    results: Path
    gsm8k: Path
    size: Size
    dtype: str
    threads: int
    vllm_python: Path | None = None
    llama: Path | None = None
    quantize: Quantization | None = None
    draft_quantize: Quantization | None = None
    humaneval: Path | None = None
    expert: Path | None = None

    def model(self, name: str) -> Path:
        """The folder of a checkpoint. Raises SystemExit where it does not exist."""
        folder = (self.models / name).resolve()
        if not (folder / "config.json").is_file():
            raise SystemExit(f"{folder} is no model's folder; --models names the folder of {LARGE}, {SMALL}, {GEMMA}")
        return folder

    def folder(self, stage: str) -> Path:
        """Where a stage keeps what it has done."""
        folder = self.work / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, stage: str, results: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a stage's results as they are so far, whole or not at all, and returns them with the machine."""
        libraries = {name: version(name) for name in ("motet", "peft", "tokenizers")}
        where = asdict(environment()) | {"threads": self.threads, "libraries": libraries}
        whole = {"benchmark": f"real-{stage}", "environment": where, "size": asdict(self.size), "results": results}
        self.results.mkdir(parents=True, exist_ok=True)
        aside = self.results / f".real-{stage}.json"
        aside.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.results / f"real-{stage}.json")
        return whole
