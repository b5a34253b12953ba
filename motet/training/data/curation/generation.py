"""Greedy answers of a policy, which may be a composition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from motet.training.data.collate import collate
from motet.training.data.documents import DocumentsBuilder
from motet.training.data.packing import one_per_row
from motet.training.data.rendered import Rendered
from motet.training.policy import Policy


def greedy(policy: Policy, prompts: Sequence[Sequence[int]], eos: int, pad_id: int, max_tokens: int) -> list[list[int]]:
    """The most probable next token again and again, until EOS (not part of the answer) or `max_tokens`.

    Whole prefixes are read at every step: policies keep no cache. Meant for answers of a few dozen tokens.

    Args:
        prompts: token ids, none empty.
    """
    import torch

    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for _ in range(max_tokens):
        builder = DocumentsBuilder()
        builder.extend(_probe([*prompts[i], *answers[i]], pad_id) for i in active)
        batch = collate({"plain": builder.build()}, "plain", (), one_per_row(len(active)), pad_id)
        with torch.no_grad():
            tokens = policy(batch).argmax(-1).numpy()
        for i, token in zip(active, tokens, strict=True):
            if token != eos:
                answers[i].append(int(token))
        active = [i for i, ended in zip(active, np.equal(tokens, eos), strict=True) if not ended]
        if not active:
            break
    return answers


def _probe(ids: list[int], placeholder: int) -> Rendered:
    """A document that asks for one prediction behind `ids`."""
    return Rendered([*ids, placeholder], [False] * len(ids) + [True], [1.0] * (len(ids) + 1))
