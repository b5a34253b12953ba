"""Answers of a model, through transformers' own decoding."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig

from motet.models.ends import end_token_ids
from motet.training.policies.soft_prompt import SoftPromptModel

if TYPE_CHECKING:
    from motet.training.run.preparation import Preparation


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    prepared: Preparation,
    *,
    max_tokens: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """New tokens behind each prompt, up to whatever ends an answer: the model's and the tokenizer's ends and that of
    the data's template. Greedy at temperature 0; no other setting that the checkpoint recommends is in force.

    Args:
        model: a causal language model of transformers or PEFT, or one behind a soft prompt.
        prompts: token ids, none empty.
        prepared: the run that the model belongs to.
    """
    pad_id, base, ends = prepared.pad_id, _base(model), ends_of(model, prepared)
    wanted = GenerationConfig(max_new_tokens=max_tokens, pad_token_id=pad_id, eos_token_id=sorted(ends) or None)
    if temperature > 0:
        wanted.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    width = max(map(len, prompts))
    device = cast(Any, model).device
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    with _configured(base, wanted):
        made: torch.Tensor = cast(Any, model).generate(input_ids=ids, attention_mask=mask, generation_config=wanted)
    new = cast("list[list[int]]", made[:, width:].tolist())
    return [list(takewhile(lambda token: token not in ends, answer)) for answer in new]


def ends_of(model: nn.Module, prepared: Preparation) -> set[int]:
    """The tokens that end an answer of the model."""
    base = _base(model)
    return {*end_token_ids(base.generation_config, base.config, prepared.tokenizer), *prepared.ends}


def _base(model: nn.Module) -> Any:
    """The causal language model itself."""
    return cast(Any, model.get_base_model() if isinstance(model, PeftModel | SoftPromptModel) else model)


@contextmanager
def _configured(base: Any, wanted: GenerationConfig) -> Generator[None]:
    """Puts `wanted` in the place of the model's own, which transformers would fill its unset fields from."""
    own, base.generation_config = base.generation_config, wanted
    try:
        yield
    finally:
        base.generation_config = own
