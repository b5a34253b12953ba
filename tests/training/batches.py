"""Batches made by hand: documents in rows, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from motet.training.batch import Batch

PAD = 0


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids; those from `start` on are to be predicted, with the weights given (1 each by default)."""

    ids: Sequence[int]
    start: int = 1
    weights: Sequence[float] | None = None


def make_batch(
    rows: Sequence[Sequence[Document]], labels: Sequence[int] | None = None, indices: Sequence[int] | None = None
) -> Batch:
    """Documents laid into rows, one after another; padding on the right."""
    width = max(sum(len(document.ids) for document in row) for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.full(shape, PAD), torch.zeros(shape, dtype=torch.int64)
    documents, counted = torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
    targets: list[int] = []
    weights: list[float] = []
    owners: list[int] = []
    number = 0
    for b, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document.ids)
            ids[b, at:end] = torch.tensor(document.ids)
            positions[b, at:end] = torch.arange(end - at)
            documents[b, at:end] = number
            counted[b, at + document.start - 1 : end - 1] = True
            answer = document.ids[document.start :]
            targets += answer
            weights += document.weights or [1.0] * len(answer)
            owners += [number] * len(answer)
            number += 1
            at = end
    return Batch(
        input_ids=ids,
        positions=positions,
        documents=documents,
        counted=counted,
        targets=torch.tensor(targets, dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float32),
        owners=torch.tensor(owners, dtype=torch.int64),
        num_documents=number,
        labels=None if labels is None else torch.tensor(labels),
        indices=None if indices is None else torch.tensor(indices),
    )
