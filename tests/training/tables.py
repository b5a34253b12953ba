"""Policies that look their logits up, with and without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from motet.training.batch import Batch
from motet.training.policy import Scores


class Whole:
    """A policy whose logits exist before they are asked for; `__call__` is its subclass's."""

    def __call__(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def scores(self, batch: Batch) -> Scores:
        logits = self(batch)
        return Scores((logits,), _known, logits.shape[-1])


def _known(rows: slice, logits: Tensor) -> Tensor:
    return logits


def blocks_of(rows: int) -> Callable[[int], int]:
    """In place of `block_rows`: blocks of so many rows, whatever their width."""

    def size(width: int) -> int:
        return rows

    return size


class Tabled(Whole):
    """Logits (N, V) by batch: the very object that they were given for."""

    def __init__(self, *entries: tuple[Batch, Tensor]) -> None:
        self.entries = entries

    def __call__(self, batch: Batch) -> Tensor:
        return next(logits for known, logits in self.entries if known is batch)


def distributions(*rows: Sequence[float]) -> Tensor:
    """Logits (N, V), float64 with gradients, of distributions written as shares; constants differ row by row."""
    logs = torch.tensor([[math.log(p) for p in row] for row in rows], dtype=torch.float64)
    return (logs + torch.arange(len(rows))[:, None]).requires_grad_()


def random_logits(count: int, vocab: int, seed: int) -> Tensor:
    """(N, V), float64 with gradients."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocab, dtype=torch.float64, generator=generator).requires_grad_()
