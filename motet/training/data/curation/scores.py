"""Log-probabilities of documents under a policy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from motet.training.data.collate import collate
from motet.training.data.documents import Documents
from motet.training.data.packing import Piece, Row
from motet.training.objectives.logprobs import policy_logprobs
from motet.training.policy import Policy

Floats = NDArray[np.float64]


def log_probs(policy: Policy, documents: Documents, pad_id: int, *, batch_tokens: int = 4096) -> Floats:
    """(n,) the sum of log p(token) in nats over each document's counted tokens; loss weights are not used.

    Args:
        batch_tokens: tokens of a batch, padding included, unless one document has more.
    """
    totals = np.zeros(len(documents))
    for rows in batches_of(documents, batch_tokens):
        batch = collate({"plain": documents}, "plain", (), rows, pad_id)
        with torch.no_grad():
            scores = policy_logprobs(policy, batch).double().cpu()
        sums = torch.zeros(batch.num_documents, dtype=torch.float64).index_add(0, batch.owners, scores)
        totals[[row[0].index for row in rows]] = sums.numpy()
    return totals


def counted_tokens(documents: Documents) -> Floats:
    """(n,) how many tokens of each document count."""
    return np.add.reduceat(documents.counted.astype(np.float64), documents.starts[:-1])


def batches_of(documents: Documents, batch_tokens: int) -> Iterator[list[Row]]:
    """Documents by falling length, so that little is padded and a lack of memory shows at once."""
    rows: list[Row] = []
    width = 0
    for index in np.argsort(-documents.lengths, kind="stable"):
        if rows and (len(rows) + 1) * width > batch_tokens:
            yield rows
            rows = []
        width = width if rows else int(documents.lengths[index])
        rows.append((Piece(int(index)),))
    if rows:
        yield rows
