"""Generation and scoring over several models that read their own contexts and share the new tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

Choose = Callable[[Tensor], Tensor]  # raw logits (K, R, V) of K models over R rows → tokens (R,)


class _Stream:
    """One model over R rows: left-padded contexts, then one token per row and step."""

    def __init__(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]]) -> None:
        width = max(map(len, contexts))
        padded = [[0] * (width - len(ids)) + list(ids) for ids in contexts]
        mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in contexts]
        self._model = model
        self._mask = torch.tensor(mask, device=model.device)
        self._next = torch.tensor(padded, device=model.device)
        self._cache: Any = None

    def logits(self, width: int) -> Tensor:
        """(R, width), float32 on the CPU: of the next token."""
        positions = (self._mask.cumsum(-1) - 1).clamp_min(0)[:, -self._next.shape[1] :]
        output = cast(Any, self._model)(
            input_ids=self._next,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        return output.logits[:, -1, :width].float().cpu()

    def append(self, tokens: Tensor) -> None:
        self._next = tokens[:, None].to(self._mask.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)


@torch.inference_mode()
def generate(
    models: Sequence[PreTrainedModel],
    contexts: Sequence[Sequence[Sequence[int]]],
    choose: Choose,
    *,
    max_tokens: int,
    vocab_size: int,
    eos: Collection[int],
) -> list[tuple[int, ...]]:
    """R continuations, each up to and without its end-of-sequence token.

    Args:
        models: K of them.
        contexts: (K, R) token ids, at least one each.
        choose: draws the tokens of one step.
    """
    streams = [_Stream(model, rows) for model, rows in zip(models, contexts, strict=True)]
    written: list[list[int]] = [[] for _ in contexts[0]]
    running = set(range(len(written)))
    for _ in range(max_tokens):
        tokens = choose(torch.stack([stream.logits(vocab_size) for stream in streams]))
        for row, token in enumerate(cast("list[int]", tokens.tolist())):
            if row in running and token in eos:
                running.discard(row)
            elif row in running:
                written[row].append(token)
        if not running:
            break
        for stream in streams:
            stream.append(tokens)
    return [tuple(row) for row in written]


def greedy(logits: Tensor) -> Tensor:
    """The first model's most likely tokens."""
    return logits[0].argmax(-1)


@torch.inference_mode()
def score(model: PreTrainedModel, context: Sequence[int], answer: Sequence[int], vocab_size: int) -> Tensor:
    """Log-probs (T, V) of every position of an answer of T ≥ 1 tokens, float32 on the CPU."""
    return answer_logits(model, context, answer, vocab_size).log_softmax(-1).cpu()


def answer_logits(model: PreTrainedModel, context: Sequence[int], answer: Sequence[int], vocab_size: int) -> Tensor:
    """Logits (T, V), float32, of the positions that predict the answer; with gradients where the model has them."""
    ids = torch.tensor([[*context, *answer]], device=model.device)[:, :-1]
    logits: Tensor = cast(Any, model)(input_ids=ids, use_cache=False).logits
    return logits[0, -len(answer) :, :vocab_size].float()


def chosen(logprobs: Tensor, answer: Sequence[int]) -> Tensor:
    """(T,) log-probs of the answer's own tokens."""
    return logprobs.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
