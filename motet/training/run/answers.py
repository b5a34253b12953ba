"""Answers of a model, through transformers' own decoding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    eos_id: int | Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """New tokens behind each prompt; what follows an end of sequence is padding. Greedy at temperature 0.

    Args:
        model: a causal language model of transformers or PEFT.
        prompts: token ids, none empty.
    """
    width = max(map(len, prompts))
    device = cast(Any, model).device
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sampling settings of the checkpoint that are overridden here
        made: torch.Tensor = cast(Any, model).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, pad_token_id=pad_id, eos_token_id=eos_id,
            **sampling,
        )  # fmt: skip
    return cast("list[list[int]]", made[:, width:].tolist())
