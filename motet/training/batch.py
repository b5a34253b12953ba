"""What a training step reads: tokenised examples, and batches of them with their targets laid flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from motet.training.data.files import RecordSource

# How a stream reads a record's prompt: through the chat template, as the text stands, or not at all (the completion
# then follows the beginning-of-text token).
PromptForm = Literal["chat", "plain", "none"]


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised document.

    `counted[t]` says whether token t is to be predicted (never the first one, prompts only where asked for);
    `weights[t]` is then its loss weight (1.0 unless the record says otherwise; 0.0 is possible: an objective may
    treat counted tokens of weight 0 in its own way).
    """

    input_ids: Sequence[int]
    counted: Sequence[bool]
    weights: Sequence[float]
    source: RecordSource

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.counted) == len(self.weights)


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents in rows, padded or packed, and the N targets of them in row-major order.

    Position (b, t) predicts token (b, t + 1) of the same document, `counted[b, t]` says whether that prediction is
    a target. Attention never crosses documents. Two views of the same records (another prompt form for another
    stream) have the same targets in the same order.
    """

    input_ids: Tensor  # (B, T) int64
    positions: Tensor  # (B, T) int64, from 0 in every document
    documents: Tensor  # (B, T) int64, 0 .. num_documents − 1, −1 on padding
    counted: Tensor  # (B, T) bool
    targets: Tensor  # (N,) int64
    weights: Tensor  # (N,) float32, ≥ 0
    owners: Tensor  # (N,) int64, the document of each target
    num_documents: int
    labels: Tensor | None = None  # (num_documents,) int64: desirable (KTO) or class index (GeDi)
    indices: Tensor | None = None  # (num_documents,) int64: the records' positions in their dataset
    views: Mapping[PromptForm, Batch] = field(default_factory=dict["PromptForm", "Batch"])

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch, views included, with every tensor on `device`."""
        moved: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, value in moved.items():
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
        moved["views"] = {form: view.to(device) for form, view in self.views.items()}
        return Batch(**moved)


StepData = Mapping[str, Batch]  # what one step reads, by the name that the objective gives it
