"""How likely a model finds what is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from motet.engines.torch import Member
from motet.engines.torch.model import ModelWork


@torch.inference_mode()
def score(member: Member, context: Sequence[int], answer: Sequence[int], vocab_size: int) -> Tensor:
    """Log-probs (T, V) of every position of an answer of T ≥ 1 tokens, float32 on the CPU. The member's cache is taken
    for it: no engine may be running."""
    ids = (*context, *answer)[:-1]
    member.cache.clear()
    member.cache.resize(1, len(ids))
    logits = member.forward([ModelWork(0, 0, ids, len(answer))])
    return logits[:, :vocab_size].float().log_softmax(-1).cpu()


def chosen(logprobs: Tensor, answer: Sequence[int]) -> Tensor:
    """(T,) log-probs of the answer's own tokens."""
    return logprobs.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
