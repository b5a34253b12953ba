"""How near a prompt is to the clusters of prompts that adapters were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from motet.experts.schema import ClusterNames, HeadSpec
from motet.models.heads import SimilarityHead
from motet.training.batch import Batch, StepData
from motet.training.objectives.objective import Calibration, Loss, ObjectiveSetting, RecordKind
from motet.training.policy import HiddenPolicy, Policies


def behind_prompts(policy: HiddenPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last hidden states (D, H) behind the prompts of D documents, in the order of their targets, and which
    documents (D,) they are."""
    first = torch.ones_like(batch.owners, dtype=torch.bool)
    first[1:] = (
        batch.owners[1:] != batch.owners[:-1]
    )  # a document's targets stand together, the first behind its prompt
    return policy.seen(batch).hidden[first], batch.owners[first]


class Similarity(ObjectiveSetting):
    """`½ ‖h − μ_c‖²`, h the model's last hidden state behind a prompt of cluster c; the means μ are where it is least.

    Li et al., "Ensembles of Low-Rank Expert Adapters", 2025. The head that the strategy `adapters` asks of its base:
    for each cluster the mean of h over its prompts, and mean and standard deviation of their cosines with it. They are
    computed at the end, over all of `data.train`, so that one step is as good as many; the model stays as it is. The
    paper takes projected gradients where this takes h.

    Each of `clusters` is the name of one file of `data.train`, up to its first dot: the prompts that an adapter was
    trained on, with their answers. Compositions name the adapters in this order.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "clusters"}
    one_model: ClassVar[bool] = True
    learns_at_end: ClassVar[bool] = True

    type: Literal["similarity_head"] = "similarity_head"
    clusters: ClusterNames

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        _ = self.head_spec  # raises ValueError: two of one name
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        return self.clusters

    @property
    def head_spec(self) -> HeadSpec:
        return HeadSpec(kind="similarity", clusters=self.clusters)

    def head(self, hidden_size: int) -> nn.Module:
        return SimilarityHead(hidden_size, self.clusters)

    def loss(self, policies: Policies, data: StepData) -> Loss:
        hidden, owners = self.features(policies, data["train"])
        head = cast("SimilarityHead", policies.head)
        distances = (hidden - head.centroids[owners]).square().sum(-1) / 2
        return Loss(distances.mean(), {}, weight=len(owners))

    def features(self, policies: Policies, batch: Batch) -> tuple[Tensor, Tensor]:
        """The last hidden states (D, H) behind the prompts of D documents, and the places (D,) of their clusters."""
        assert batch.labels is not None, "clusters have names"
        hidden, documents = behind_prompts(cast("HiddenPolicy", policies.trained), batch)
        order = torch.tensor([self.clusters.index(name) for name in sorted(self.clusters)], device=batch.labels.device)
        return hidden, order[batch.labels[documents]]

    def calibrated(self, policies: Policies, batches: Iterable[Batch]) -> Calibration:
        """Fits the head, and says how much of each cluster's prompts its own adapter gets."""
        parts = [self.features(policies, batch) for batch in batches]
        hidden, owners = (torch.cat(column) for column in zip(*parts, strict=True))
        head = cast("SimilarityHead", policies.head)
        head.fit(hidden, owners)
        own = head(hidden).softmax(-1).gather(-1, owners[:, None]).squeeze(-1)
        shares = {f"{name}: share of its own adapter": own[owners == c].mean() for c, name in enumerate(self.clusters)}
        return Calibration(self.head_spec, {name: round(value.item(), 6) for name, value in shares.items()})
