"""Where another token leads elsewhere: what a model writes behind either of two tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from motet.training.batch import Batch
from motet.training.objectives.objective import Paths
from motet.training.policy import HiddenPolicy, Policy, Scores
from motet.training.run.answers import ends_of, generate

if TYPE_CHECKING:
    from motet.training.run.preparation import Preparation

AT_ONCE = 32  # texts that are written together


@dataclass(frozen=True)
class Diverging:
    """A teacher that differs from the trained model only where that leads elsewhere, by its own continuations.

    Attributes:
        trained: the model that it is compared with.
        teacher: the policy of `model`, a causal language model.
        paths: when two tokens lead elsewhere.
        prepared: the run that both belong to.
    """

    trained: HiddenPolicy
    teacher: Policy
    model: nn.Module
    paths: Paths
    prepared: Preparation

    def __call__(self, batch: Batch) -> Tensor:
        """(N, V) logits: the teacher's where its most likely token leads elsewhere, else the trained model's."""
        own, other = self.trained.seen(batch).logits, self.teacher(batch)
        width = min(own.shape[-1], other.shape[-1])
        own, other = own[:, :width], other[:, :width]
        tokens = torch.stack((own.argmax(-1), other.argmax(-1)), -1)
        diverges = torch.zeros(len(own), dtype=torch.bool, device=own.device)
        unlike = (tokens[:, 0] != tokens[:, 1]).nonzero().squeeze(-1)
        if len(unlike):
            contexts = [_context(batch, place) for place in cast("list[int]", unlike.tolist())]
            pairs = cast("list[list[int]]", tokens[unlike].tolist())
            diverges[unlike] = torch.tensor(self._elsewhere(contexts, pairs), device=own.device)
        return torch.where(diverges[:, None], other, own)

    def scores(self, batch: Batch) -> Scores:
        logits = self(batch)
        return Scores((logits,), _as_they_are, logits.shape[-1])

    def _elsewhere(self, contexts: Sequence[list[int]], pairs: Sequence[list[int]]) -> list[bool]:
        """Whether the tokens of each pair lead elsewhere behind its context."""
        texts = self._written(
            [(context, token) for context, pair in zip(contexts, pairs, strict=True) for token in pair]
        )
        return [
            common_length(one, other) < self.paths.agreement * max(len(one), len(other))
            for one, other in zip(texts[::2], texts[1::2], strict=True)
        ]

    def _written(self, begun: Sequence[tuple[list[int], int]]) -> list[list[int]]:
        """The token behind each context, and what follows; nothing follows an end."""
        ends = ends_of(self.model, self.prepared)
        texts = [[token] for _, token in begun]
        order = sorted((n for n, (_, token) in enumerate(begun) if token not in ends), key=lambda n: len(begun[n][0]))
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            prompts = [[*begun[n][0], begun[n][1]] for n in chosen]
            answers = generate(self.model, prompts, self.prepared, max_tokens=self.paths.horizon)
            for n, answer in zip(chosen, answers, strict=True):
                texts[n] += answer
        return texts


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(other) + 1)
    for left in one:
        before = best
        best = [0]
        for place, right in enumerate(other):
            best.append(before[place] + 1 if left == right else max(before[place + 1], best[place]))
    return best[-1]


def _as_they_are(_: slice, logits: Tensor) -> Tensor:
    return logits


def _context(batch: Batch, target: int) -> list[int]:
    """What stands before a target in its document."""
    row, place = cast("list[int]", batch.counted.nonzero()[target].tolist())
    ids, documents = batch.input_ids[row, : place + 1], batch.documents[row, : place + 1]
    return cast("list[int]", ids[documents == documents[place]].tolist())
