"""Class-conditional language models that discriminate: the guides of GeDi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from motet.training.batch import StepData
from motet.training.objectives.logprobs import document_sums, document_weights, policy_logprobs
from motet.training.objectives.objective import Loss, ObjectiveSetting, RecordKind, Share
from motet.training.objectives.pieces import conditioned
from motet.training.policy import Policies


class ClassHead(nn.Module):
    """(D, C) mean log-probs → (D, C) scores: one scale, a bias per class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, means: Tensor) -> Tensor:
        return self.scale * means + self.bias


class GenerativeDiscriminator(ObjectiveSetting):
    """`λ·generative + (1 − λ)·discriminative` over texts read behind the prompt of each class.

    Krause et al., "GeDi: Generative Discriminator Guided Sequence Generation", 2020. With ℓ_c the mean log-prob of a
    text's tokens behind the prompt of class c: generative is `−ℓ` of its own class, discriminative the cross-entropy
    of `softmax_c(scale·ℓ_c + bias_c)`, scale and bias being trained beside the model (the head).

    `prompts` gives each class its text, in the order of the labels as sorted; the server's `discriminator` strategy
    is then given the same texts.
    """

    datasets: ClassVar[Mapping[str, RecordKind]] = {"train": "classes"}
    one_model: ClassVar[bool] = True

    type: Literal["gedi"] = "gedi"
    prompts: tuple[str, ...] = Field(min_length=2)
    generative: Share = 0.8  # λ

    @property
    def class_prompts(self) -> tuple[str, ...]:
        return self.prompts

    def head(self, hidden_size: int) -> nn.Module:
        return ClassHead(len(self.prompts))

    def loss(self, policies: Policies, data: StepData) -> Loss:
        batch = data["train"]
        assert batch.labels is not None, "texts with classes"
        means = class_means(policies, data)
        assert policies.head is not None, "gedi has a head"
        scores: Tensor = policies.head(means)
        generative = -means.gather(-1, batch.labels[:, None]).mean()
        discriminative = F.cross_entropy(scores, batch.labels)
        accuracy = (scores.argmax(-1) == batch.labels).to(scores.dtype).mean()
        parts = {"generative": generative.detach(), "discriminative": discriminative.detach(), "accuracy": accuracy}
        total = self.generative * generative + (1 - self.generative) * discriminative
        return Loss(total, parts, weight=batch.num_documents)


def class_means(policies: Policies, data: StepData) -> Tensor:
    """(D, C) mean log-prob in nats of every text's targets behind the prompt of every class."""
    batch, prompts = data["train"], policies.classes
    assert prompts is not None, "gedi has class prompts"
    columns: list[Tensor] = []
    for number in range(len(prompts.ids)):
        view = conditioned(batch, prompts, number)
        logprobs = policy_logprobs(policies.trained, view)
        columns.append(document_sums(logprobs, view) / document_weights(view).clamp_min(1e-9))
    return torch.stack(columns, -1)
