"""What every benchmark shares: random members of stated sizes, interleaved timing, a truthful header."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Shape:
    """A random Llama; speed does not depend on what the weights know."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int


SIZES: dict[str, dict[str, Shape]] = {
    "small": {
        "base": Shape(512, 8, 8, 4, 4096),
        "expert": Shape(256, 4, 4, 2, 4096),
        "antiexpert": Shape(256, 4, 4, 2, 4096),
    },
    "medium": {
        "base": Shape(1024, 16, 16, 8, 32_000),
        "expert": Shape(512, 8, 8, 4, 32_000),
        "antiexpert": Shape(512, 8, 8, 4, 32_000),
    },
}


def make_family(folder: Path, size: str) -> dict[str, Path]:
    """Saves the members of a size in bfloat16, each once."""
    paths: dict[str, Path] = {}
    for seed, (name, shape) in enumerate(SIZES[size].items()):
        paths[name] = folder / size / name
        if not (paths[name] / "config.json").exists():
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                intermediate_size=3 * shape.hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
            config.dtype = torch.bfloat16
            model = LlamaForCausalLM(config)
            torch.nn.Module.to(model, torch.bfloat16)
            model.save_pretrained(paths[name])
            word_tokenizer(shape.vocab).save_pretrained(paths[name])
    return paths


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Token i is the word `t<i>`; 0 to 2 are padding, beginning and end."""
    special = ["<pad>", "<bos>", "<eos>"]
    words = {word: i for i, word in enumerate(special + [f"t{i}" for i in range(3, vocab)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Runs the variants in turn, so that a machine's drift touches all of them; each returns its own figure."""
    for _ in range(warm_up):
        for run in variants.values():
            run()
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            figures[name].append(run())
    return figures


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a figure was measured."""

    processor: str
    cores: int
    threads: int
    accelerator: str
    python: str
    torch: str
    transformers: str
    triton: str


transformers.utils.logging.disable_progress_bar()


def environment() -> Environment:
    return Environment(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        triton=metadata.version("triton") if find_spec("triton") else "none",
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def median_of_ratios(top: list[float], bottom: list[float]) -> float:
    """Round by round, so that both figures of a ratio come from the same moment."""
    return statistics.median(t / b for t, b in zip(top, bottom, strict=True))


def report(name: str, results: Any, out: Path | None) -> None:
    """The last line of every benchmark, and the same in a file."""
    print(recorded(name, results, out))


def recorded(name: str, results: Any, out: Path | None) -> str:
    """The line, written to the file, if any."""
    line = json.dumps({"benchmark": name, "environment": asdict(environment()), "results": results})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(json.loads(line), indent=1) + "\n")
    return line
