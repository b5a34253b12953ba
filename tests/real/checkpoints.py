"""Real checkpoints for tests, where a folder of them is given, and what transformers alone says on them.

Toy models hide faults: outlier channels, massive activations, ends of answers, bfloat16. `MOTET_REAL_MODELS` names a
folder with some of `gemma3-270m`, `qwen-0.5b` and `qwen-1.5b`; tests whose models are missing are skipped with the
reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from motet.composers.plan import Plan
from motet.composers.rows import reference_logprobs

VARIABLE = "MOTET_REAL_MODELS"
PROMPTS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many did she sell in all?",
    "In one word: what is the capital of France?",
)
TOP = 48  # tokens that a distribution is compared on, beside the rest of it as one
DUST = 1e-9  # what is less likely, be it masked, counts as this

Sequence_ = tuple[tuple[int, ...], tuple[int, ...]]  # what is read, and the answer behind it


def folder_of(name: str) -> Path | None:
    """The checkpoint's folder, None where it is not there."""
    root = os.environ.get(VARIABLE)
    folder = Path(root) / name if root else None
    return folder if folder is not None and (folder / "config.json").is_file() else None


def skip_without(names: Sequence[str]) -> None:
    """Skips the test unless all checkpoints are there."""
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no folder of real checkpoints")
    missing = [name for name in names if folder_of(name) is None]
    if missing:
        pytest.skip(f"{os.environ[VARIABLE]} lacks {', '.join(missing)}")


@torch.no_grad()
def plain_logits(name: str, dtype: torch.dtype, sequences: Sequence[Sequence_], vocab_size: int) -> list[Tensor]:
    """(answer tokens, vocab_size) float32 logits of each answer's tokens, by one whole forward of the unmodified model
    per sequence."""
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder_of(name)), dtype=dtype, attn_implementation="eager")
    found: list[Tensor] = []
    for context, answer in sequences:
        ids = torch.tensor([[*context, *answer]])
        keep = torch.arange(len(context) - 1, ids.shape[1] - 1)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[0, :, :vocab_size]
        found.append(cast("Tensor", logits).float())
    return found


def composed_logprobs(
    plan: Plan,
    contexts: Sequence[tuple[int, ...]],
    answer: tuple[int, ...],
    logits: Mapping[tuple[str, Sequence_], Tensor],
) -> Tensor:
    """(answer tokens, V) log-probs of the composition over transformers' own logits, in float64."""
    streams = [
        logits[stream.model, (context, answer)].double() for stream, context in zip(plan.streams, contexts, strict=True)
    ]
    return reference_logprobs(plan, torch.stack(streams))


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats of every row, from (n, TOP) log-probs of the same tokens and the rest as one token."""
    p, q = (torch.cat((part, _rest(part)), -1).clamp_min(math.log(DUST)) for part in (p.double(), q.double()))
    return (p.exp() * (p - q)).sum(-1)


def _rest(logprobs: Tensor) -> Tensor:
    return (1 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(DUST).log()
