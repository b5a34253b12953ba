"""One member: an unmodified Hugging Face causal language model whose attention reads and writes our slots."""

from __future__ import annotations

import inspect
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from motet.engines.torch.attention import STEP, Segment, StepContext
from motet.engines.torch.cache import LayerShape, SlotCache
from motet.engines.torch.prices import Prices
from motet.models.ends import ends_within, model_ends
from motet.models.facts import num_parameters
from motet.models.info import ModelInfo


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What one stream computes in a step: `tokens` from position `start` in `slot`; logits of the last `num_logits`."""

    slot: int
    start: int
    tokens: Sequence[int]
    num_logits: int


class Member:
    """A loaded model with its slot cache.

    `forward` is the only way in: all streams of a step in one call.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        max_model_len: int,
        vocab_size: int,
        shapes: Sequence[LayerShape],
        ends: Collection[int] = (),
    ) -> None:
        self.name = name
        self.model = model
        self.dtype = model.dtype
        self.device = model.device
        self.vocab_size = vocab_size
        self.cache = SlotCache(shapes, self.dtype, self.device)
        self.forward_seconds = 0.0
        self.num_forwards = 0
        self.prices = Prices()
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.info = ModelInfo(
            name=name,
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            kv_bytes_per_token=self.cache.bytes_per_token,
            num_parameters=num_parameters(model.config),  # of the checkpoint, however they are stored
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            eos_token_ids=ends_within(vocab_size, ends, model_ends(model)),
        )

    def forward(self, work: Sequence[ModelWork]) -> Tensor:
        """Runs all streams' tokens as one flat batch; single tokens must come first, in ascending slot order.

        Returns:
            (n, vocab_size) raw logits, in the model's dtype: the last `num_logits` tokens of each item, in order.
        """
        began = time.perf_counter()
        logits = self._forward(work)
        spent = time.perf_counter() - began
        self.forward_seconds += spent
        self.num_forwards += 1
        self.prices.observe(sum(len(item.tokens) for item in work), spent)
        return logits

    def _forward(self, work: Sequence[ModelWork]) -> Tensor:
        segments: list[Segment] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for item in work:
            segments.append(Segment(item.slot, item.start, len(item.tokens), len(ids)))
            ids += item.tokens
            positions += range(item.start, item.start + len(item.tokens))
            wanted += range(len(ids) - item.num_logits, len(ids))
        singles = next((i for i, segment in enumerate(segments) if segment.length > 1), len(segments))
        step = StepContext(self.cache, segments[:singles], segments[singles:])
        # a tensor, never a number: with a number some models drop queries early, and we need every token's keys
        keep = torch.tensor(wanted or [0], dtype=torch.int64, device=self.device)
        every = len(wanted) == len(ids)  # a decoding step: all is the cheaper index
        extra = {"logits_to_keep": 0 if every else keep} if self._keeps_logits else {}
        current = STEP.set(step)
        try:
            output = self.model(
                input_ids=torch.tensor([ids], dtype=torch.int64, device=self.device),
                position_ids=torch.tensor([positions], dtype=torch.int64, device=self.device),
                use_cache=False,
                **extra,
            )
        finally:
            STEP.reset(current)
        logits: Tensor = output.logits[0]
        if not wanted:
            logits = logits[:0]
        elif not self._keeps_logits and len(wanted) < len(ids):
            logits = logits[keep]
        return logits[:, : self.vocab_size]
