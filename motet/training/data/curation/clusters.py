"""Prompts in clusters by a model's hidden states behind them: what adapters of their own are trained on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from motet.training.data.collate import collate
from motet.training.data.curation.scores import batches_of
from motet.training.data.documents import Documents
from motet.training.objectives.similarity import behind_prompts
from motet.training.policy import HiddenPolicy

ROUNDS = 100
ATTEMPTS = 10  # beginnings, of which the best is kept


def prompt_states(policy: HiddenPolicy, documents: Documents, pad_id: int, *, batch_tokens: int = 4096) -> Tensor:
    """(n, H) float64: the last hidden state behind each document's prompt.

    Args:
        batch_tokens: tokens of a batch, padding included, unless one document has more.
    """
    found: list[Tensor] = []
    order: list[int] = []
    for rows in batches_of(documents, batch_tokens):
        batch = collate({"plain": documents}, "plain", (), rows, pad_id)
        found.append(behind_prompts(policy, batch)[0].double().cpu())
        order += [row[0].index for row in rows]
    return torch.cat(found)[torch.tensor(order).argsort()]


def unlike_prompts(documents: Documents) -> int:
    """How many prompts there are, the same ones counted once."""
    slices = map(documents.slice, range(len(documents)))
    return len({documents.ids[own][: int(documents.counted[own].argmax())].tobytes() for own in slices})


def k_means(points: Tensor, count: int, seed: int) -> NDArray[np.int64]:
    """(n,) the cluster of each point (n, H), numbered by falling size; points are compared by their directions.

    Lloyd's rounds from the beginnings of k-means++ (Arthur and Vassilvitskii, 2007); of several the one with the least
    squared distances. No cluster stays empty where there are as many different directions as clusters.
    """
    units, generator = F.normalize(points, dim=-1), torch.Generator().manual_seed(seed)
    tries = [_lloyd(units, _beginning(units, count, generator)) for _ in range(ATTEMPTS)]
    owners, _ = min(tries, key=lambda one: one[1])
    sizes = torch.bincount(owners, minlength=count)
    return sizes.argsort(descending=True, stable=True).argsort()[owners].numpy()


def _beginning(units: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, H): points, each drawn by its squared distance to those before."""
    chosen = [int(torch.randint(len(units), (1,), generator=generator))]
    while len(chosen) < count:
        nearest = torch.cdist(units, units[chosen]).square().amin(-1)
        # where all directions are taken any will do
        weights = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return units[chosen]


def _lloyd(units: Tensor, centres: Tensor) -> tuple[Tensor, float]:
    """The owners (n,), and the sum of squared distances to their centres."""
    owners = torch.full((len(units),), -1)
    for _ in range(ROUNDS):
        distances = torch.cdist(units, centres)
        nearest = distances.argmin(-1)
        if bool((nearest == owners).all()):
            break
        owners = nearest
        centres = torch.stack([
            units[owners == c].mean(0) if bool((owners == c).any()) else units[distances.amin(-1).argmax()]
            for c in range(len(centres))
        ])  # fmt: skip
    return owners, float(torch.cdist(units, centres).square().gather(-1, owners[:, None]).sum())
