"""Which parameters a run trains: all of them, a share in rounds, low-rank adapters, or a soft prompt."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from itertools import cycle, islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from motet.experts.merging import merge
from motet.training.policies.soft_prompt import SoftPromptModel
from motet.training.recipe import Half, Lora, SoftPrompt, Tuning
from motet.training.run.errors import RunError


def prepare(
    model: PreTrainedModel, tuning: Tuning, *, base: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> nn.Module:
    """The module to be trained: `model` itself, a PEFT model around it, or one with a soft prompt in front of it. What
    is trained becomes float32.

    Args:
        model: as loaded; changed in place.
        tuning: the recipe's.
        base: what an adapter's configuration calls the model that it belongs to.
        tokenizer: of a soft prompt that begins as a text.

    Raises:
        RunError: adapter targets that the model does not have, a text without tokens.
    """
    if isinstance(tuning, Lora):
        return _with_adapter(model, tuning, base)
    if isinstance(tuning, SoftPrompt):
        ids = _first_ids(tuning, cast(Any, model.config).get_text_config().vocab_size, tokenizer)
        return SoftPromptModel(model, model.get_input_embeddings()(ids), base)
    return model.requires_grad_(True).float()


def _first_ids(tuning: SoftPrompt, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
    """(P,) tokens as whose embeddings a soft prompt begins."""
    if tuning.text is None:
        return torch.randint(0, vocab_size, (tuning.tokens,))
    assert tokenizer is not None
    ids = cast("list[int]", cast(Any, tokenizer).encode(tuning.text, add_special_tokens=False))
    if not ids:
        raise RunError(f"tuning.text: {tuning.text!r} is no token")
    return torch.tensor(list(islice(cycle(ids), tuning.tokens)))


def _with_adapter(model: PreTrainedModel, tuning: Lora, base: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    from motet.training.run.adapted_linear import AdaptedLinear

    cast(Any, model).name_or_path = base
    config = LoraConfig(
        r=tuning.r,
        lora_alpha=cast(int, tuning.alpha),
        lora_dropout=tuning.dropout,
        use_rslora=tuning.rank_stabilized,
        target_modules=tuning.targets if isinstance(tuning.targets, str) else list(tuning.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    if getattr(model, "hf_quantizer", None) is None:  # quantised layers have adapters of peft's own
        config._register_custom_module({nn.Linear: AdaptedLinear})  # pyright: ignore[reportPrivateUsage]  # peft's way
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about peft's own use of it
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # merging sees to it
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft sees to the layout of GPT-2's layers itself
            return get_peft_model(model, config)
    except ValueError as error:
        raise RunError(f"tuning.targets: {' '.join(str(error).split())}") from error


def merged(model: nn.Module) -> PreTrainedModel:
    """A PEFT model's base with the adapter added to its weights; other models as they are."""
    return merge(model) if hasattr(model, "merge_and_unload") else cast(PreTrainedModel, model)


def trained_parameters(model: nn.Module, head: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """What the optimiser moves, by name; a head's names begin with `head.`."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    extra = {} if head is None else {f"head.{name}": parameter for name, parameter in head.named_parameters()}
    return {**found, **extra}


class FreezingRounds:
    """Half fine-tuning (Hui et al., "HFT: Half Fine-Tuning for Large Language Models", 2024).

    The run is divided into rounds of equal length. In each, a share of the parameter tensors, drawn anew from
    (seed, round) alone, keeps its values: they get no gradient, which both optimisers skip.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], tuning: Half, seed: int, steps: int) -> None:
        self._parameters, self._tuning, self._seed, self._steps = parameters, tuning, seed, steps
        self._current = -1

    def frozen(self, number: int) -> frozenset[str]:
        """Names of the tensors that a round keeps."""
        names = sorted(self._parameters)
        draw = random.Random(f"{self._seed} {number}")
        return frozenset(draw.sample(names, round(len(names) * self._tuning.frozen)))

    def enter(self, step: int) -> None:
        """Freezes what the round of a step (from 0) keeps and thaws the rest."""
        number = step * self._tuning.rounds // self._steps
        if number == self._current:
            return
        frozen = self.frozen(number)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name not in frozen)
        self._current = number


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that a run computes in: auto is bfloat16 where the hardware multiplies it natively, else float32."""
    from motet.training.llama import fast_dtype

    if precision != "auto":
        return cast(torch.dtype, getattr(torch, precision))
    return torch.bfloat16 if device.type == "cuda" else fast_dtype()
