"""Rows of documents as one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from motet.training.batch import Batch, PromptForm
from motet.training.data.documents import Documents
from motet.training.data.packing import Row


def collate(
    forms: Mapping[PromptForm, Documents],
    primary: PromptForm,
    views: Sequence[PromptForm],
    rows: Sequence[Row],
    pad_id: int,
    labels: NDArray[np.int64] | None = None,
) -> Batch:
    """The rows in the primary form, and in every view; padded on the right to the longest row.

    Args:
        forms: the documents in each form, aligned.
        labels: one per document of the dataset.
    """
    indices = np.array([piece.index for row in rows for piece in row], np.int64)
    picked = None if labels is None else torch.from_numpy(labels[indices])
    batches: dict[PromptForm, Batch] = {form: _batch(forms[form], rows, pad_id, indices, picked, {}) for form in views}
    batch = _batch(forms[primary], rows, pad_id, indices, picked, batches)
    assert all(torch.equal(view.targets, batch.targets) for view in batches.values()), "the views' targets differ"
    return batch


def _batch(
    documents: Documents,
    rows: Sequence[Row],
    pad_id: int,
    indices: NDArray[np.int64],
    labels: torch.Tensor | None,
    views: Mapping[PromptForm, Batch],
) -> Batch:
    slices = [[_slice(documents, piece.index, piece.start, piece.stop) for piece in row] for row in rows]
    shape = len(rows), max(sum(part.stop - part.start for part in row) for row in slices)
    ids = np.full(shape, pad_id, np.int64)
    positions, owners = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    counted, weights = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
    number = 0
    for b, row in enumerate(slices):
        t = 0
        for part in row:
            stop = t + part.stop - part.start
            ids[b, t:stop] = documents.ids[part]
            positions[b, t:stop] = np.arange(stop - t)
            owners[b, t:stop] = number
            # position t predicts t + 1, so that masks and weights move one to the left
            counted[b, t : stop - 1] = documents.counted[part][1:]
            weights[b, t : stop - 1] = documents.weights[part][1:]
            t, number = stop, number + 1
    return Batch(
        input_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(owners),
        counted=torch.from_numpy(counted),
        targets=torch.from_numpy(ids[:, 1:][counted[:, :-1]]),
        weights=torch.from_numpy(weights[counted]),
        owners=torch.from_numpy(owners[counted]),
        num_documents=number,
        labels=labels,
        indices=torch.from_numpy(indices),
        views=views,
    )


def _slice(documents: Documents, index: int, start: int, stop: int | None) -> slice:
    whole = documents.slice(index)
    return slice(whole.start + start, whole.stop if stop is None else whole.start + stop)
