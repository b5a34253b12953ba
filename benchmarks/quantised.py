"""What weights in 4 and 8 bits give and cost: speed of decoding beside bfloat16 and llama.cpp, and perplexity.

    python -m benchmarks.quantised speed qwen-1.5b --gguf qwen-1.5b.gguf --llama-cpp FOLDER --out OUT.json
    python -m benchmarks.quantised products qwen-1.5b --out OUT.json
    python -m benchmarks.quantised perplexity qwen-1.5b --data gsm8k-test.jsonl.gz --out OUT.json

Theory: decoding one token reads every weight once, so a step of one request takes at least the weights' bytes over the
memory's bandwidth (measured here with a sum over a large tensor); with more requests in a step, arithmetic counts too.
`speed` times decoding steps behind 64 tokens of context. Variants run in turn; llama.cpp (see llama_cpp.mjs for how to
install it) runs in the same rounds with as many threads, greedy sampling included. `products` times a step's products
alone: every shape that the model multiplies with, as often as it does, in bfloat16 (by oneDNN, as Motet calls it and
with the rows as they are), by torch's kernel for 4 bits and by Motet's, for several rows, of random weights that are
larger than any cache together. `perplexity` is that of GSM8K's answers behind their questions in the model's chat
template, through the embedded engine's own forward.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from motet.environment import missing

os.environ.update(missing(os.environ))  # must stand before torch is imported

import torch
from transformers import AutoConfig, AutoTokenizer

from benchmarks.common import environment, interleave, median_of_ratios, report, seconds
from motet.engines.torch import Member, load_member
from motet.engines.torch.int4 import int4_kernel
from motet.engines.torch.model import ModelWork
from motet.engines.torch.packing import PackedLinear, can_pack
from motet.engines.torch.quantization import weight_bytes
from motet.engines.torch.quantized import GROUP, LEVELS, Int4VnniWeight, Int4Weight, StoredWeight
from motet.models.facts import shapes_of
from motet.models.info import Quantization

KINDS: dict[str, Quantization | None] = {"bfloat16": None, "int8": "int8", "int4": "int4"}
PROMPT = 64
WARM_UP = 2
BANDWIDTH_BYTES = 1 << 29


def load(folder: str, kind: str) -> Member:
    return load_member(kind, folder, dtype=torch.bfloat16, quantization=KINDS[kind])


def bandwidth() -> float:
    """Bytes per second that are read from memory."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4)
    return BANDWIDTH_BYTES / min(seconds(numbers.sum) for _ in range(5))


@torch.inference_mode()
def tokens_per_second(member: Member, batch: int, steps: int) -> float:
    member.cache.clear()
    member.cache.resize(batch, PROMPT + WARM_UP + steps)
    for slot in range(batch):
        member.forward([ModelWork(slot, 0, range(100 + slot, 100 + slot + PROMPT), 1)])

    def step(position: int) -> None:
        # the greedy choice as `max` has it: torch's argmax over bfloat16 takes four times as long
        member.forward([ModelWork(slot, position, [5], 1) for slot in range(batch)]).max(-1)

    for position in range(PROMPT, PROMPT + WARM_UP):
        step(position)
    first = PROMPT + WARM_UP
    return batch * steps / seconds(lambda: [step(position) for position in range(first, first + steps)])


def llama_cpp(file: Path, folder: Path, *, sequences: int, prompt: int, tokens: int, threads: int) -> float:
    """Tokens per second of llama.cpp on a GGUF file; `folder`: where node-llama-cpp is installed."""
    script = Path(__file__).with_name("llama_cpp.mjs")
    sizes = {"threads": threads, "prompt": prompt, "sequences": sequences, "tokens": tokens}
    command = [
        "node",
        str(script),
        str(file),
        *(text for name, size in sizes.items() for text in (f"--{name}", str(size))),
    ]
    environ = {**os.environ, "NODE_LLAMA_CPP": str(folder.resolve())}
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["tokens_per_second"][str(sequences)][0]


def speed(options: argparse.Namespace) -> dict[str, Any]:
    shapes = shapes_of(AutoConfig.from_pretrained(options.folder))
    sizes = {name: weight_bytes(shapes, kind, torch.bfloat16.itemsize) for name, kind in KINDS.items()}
    rate = bandwidth()
    for name, size in sizes.items():
        print(f"theory: {name}: {size / 1e9:.2f} GB, at most {rate / size:.1f} tokens/s at {rate / 1e9:.0f} GB/s")
    members = {name: load(options.folder, name) for name in options.kinds}
    results: dict[str, Any] = {"bandwidth": rate, "weight_bytes": sizes, "tokens_per_second": {}}
    for batch in options.batches:
        variants: dict[str, Callable[[], float]] = {
            name: partial(tokens_per_second, member, batch, options.steps) for name, member in members.items()
        }
        if options.gguf:
            shape = {"sequences": batch, "prompt": PROMPT, "tokens": options.steps, "threads": torch.get_num_threads()}
            variants["llama.cpp"] = partial(llama_cpp, options.gguf, options.llama_cpp, **shape)
        figures = interleave(variants, options.rounds, warm_up=0)
        found = {name: statistics.median(values) for name, values in figures.items()}
        if options.gguf and "int4" in figures:
            found["int4_over_llama.cpp"] = median_of_ratios(figures["int4"], figures["llama.cpp"])
        results["tokens_per_second"][str(batch)] = found
        results.setdefault("rounds", {})[str(batch)] = figures
        print(f"batch {batch}: " + "  ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
    return results


def products(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all products with weights of one step, by the number of rows."""
    kernel = int4_kernel()
    if kernel is None:
        raise SystemExit(
            "there is no kernel on this machine: MOTET_KERNELS, the processor's AVX-512 VNNI, a C++ compiler"
        )
    layers = weights_of(options.folder)
    able = can_pack(torch.bfloat16)
    wide = [PackedLinear(torch.randn(form.shape, dtype=torch.bfloat16), None) for form, _ in layers] if able else []
    size = sum(stored.packed.numel() for stored, _ in layers)
    rate = bandwidth()
    print(f"theory: {size / 1e9:.2f} GB are read once, {size / rate * 1e3:.1f} ms at {rate / 1e9:.0f} GB/s")
    found: dict[str, Any] = {"bandwidth": rate, "weight_bytes": size, "ms": {}}
    for rows in options.rows:
        inputs = {stored.shape[1]: torch.randn(rows, stored.shape[1]).bfloat16() for stored, _ in layers}

        variants: dict[str, Callable[[], float]] = {
            name: partial(seconds, partial(multiply_all, [pair[place] for pair in layers], inputs))
            for place, name in enumerate(("motet", "torch"))
        }
        if wide:
            variants["bfloat16"] = partial(seconds, partial(multiply_wide, wide, inputs))
            variants["bfloat16, rows as they are"] = partial(seconds, partial(multiply_wide, wide, inputs, as_is=True))
        figures = interleave(variants, options.rounds)
        row = {name: statistics.median(values) * 1e3 for name, values in figures.items()}
        row["torch_over_motet"] = median_of_ratios(figures["torch"], figures["motet"])
        found["ms"][str(rows)] = row
        print(f"{rows} rows: " + "  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
    return found


@torch.inference_mode()
def multiply_all(weights: Sequence[StoredWeight], inputs: Mapping[int, torch.Tensor]) -> None:
    for weight in weights:
        weight.multiply(inputs[weight.shape[1]])


@torch.inference_mode()
def multiply_wide(linears: Sequence[PackedLinear], inputs: Mapping[int, torch.Tensor], *, as_is: bool = False) -> None:
    for linear in linears:
        (linear.product if as_is else linear)(inputs[linear.in_features])


def weights_of(folder: str) -> list[tuple[Int4VnniWeight, Int4Weight]]:
    """Both forms of random weights of a checkpoint's shapes: of all layers, siblings joined as they are when loaded."""
    kernel = int4_kernel()
    assert kernel is not None
    c = cast("Any", AutoConfig.from_pretrained(folder))
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    read, written = (c.num_attention_heads + 2 * c.num_key_value_heads) * head, c.num_attention_heads * head
    layer = [(read, c.hidden_size), (c.hidden_size, written), (2 * c.intermediate_size, c.hidden_size)]
    layer.append((c.hidden_size, c.intermediate_size))
    forms: list[tuple[Int4VnniWeight, Int4Weight]] = []
    for outputs, inputs in [*layer * c.num_hidden_layers, (c.vocab_size, c.hidden_size)]:
        codes = torch.randint(0, LEVELS, (outputs, inputs), dtype=torch.uint8)
        scale, zero = torch.rand(2, outputs, inputs // GROUP).bfloat16()
        forms.append((Int4VnniWeight(kernel, codes, scale, zero), Int4Weight(codes, scale, zero)))
    return forms


def answers(options: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """Ids of questions as the model reads them, and of their answers."""
    tokenizer = cast("Any", AutoTokenizer.from_pretrained(options.folder))
    with gzip.open(options.data, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for _, line in zip(range(options.questions), lines, strict=False)]
    return [
        (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}], add_generation_prompt=True, return_dict=False
            ),
            tokenizer(row["answer"], add_special_tokens=False).input_ids,
        )
        for row in rows
    ]


@torch.inference_mode()
def perplexity(options: argparse.Namespace) -> dict[str, Any]:
    pairs = answers(options)
    count = sum(len(answer) for _, answer in pairs)
    found: dict[str, float] = {}
    for kind in options.kinds:
        member = load(options.folder, kind)
        surprise = 0.0
        for question, answer in pairs:
            ids = question + answer
            member.cache.clear()
            member.cache.resize(1, len(ids))
            logits = member.forward([ModelWork(0, 0, ids, len(answer) + 1)])[:-1].float()
            surprise -= float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
        found[kind] = math.exp(surprise / count)
        beside = f", {found[kind] / found['bfloat16'] - 1:+.2%}" if "bfloat16" in found else ""
        print(f"{kind}: perplexity {found[kind]:.4f}{beside}", flush=True)
    return {"questions": len(pairs), "tokens": count, "perplexity": found}


MEASURES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "speed": speed,
    "products": products,
    "perplexity": perplexity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("folder", help="of a checkpoint")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="of weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 5, 8, 16, 64], help="for `products`")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--llama-cpp", type=Path, help="where node-llama-cpp is installed")
    parser.add_argument("--data", type=Path, help="GSM8K's questions and answers, .jsonl.gz")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(environment())
    results = MEASURES[options.measure](options)
    report("quantised", {"model": Path(options.folder).name, "measure": options.measure, **results}, options.out)


if __name__ == "__main__":
    main()
