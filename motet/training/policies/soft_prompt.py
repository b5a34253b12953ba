"""A frozen model with a soft prompt in front of every document: trained embeddings, which are all that is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from motet.models.soft_prompts import write_soft_prompt
from motet.training.batch import Batch


class SoftPromptModel(nn.Module):
    """Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", 2021.

    What reads batches asks `prefixed` for them; the ids −1, −2, … in them are the prompt's rows.

    Args:
        model: as loaded; its parameters are frozen.
        rows: (P, H) to begin with.
        base: what the result calls the model that it belongs to.
    """

    def __init__(self, model: PreTrainedModel, rows: Tensor, base: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.embeddings = nn.Parameter(rows.detach().float())
        self._base = base
        self._off = False

    def prefixed(self, batch: Batch) -> Batch:
        """The batch with the prompt's ids in front of each document; targets stay as they are."""
        return batch if self._off else with_prefix(batch, len(self.embeddings))

    def forward(self, input_ids: Tensor, **given: Any) -> Any:
        """As the model's own, of ids (B, T) of which some may be negative."""
        virtual = input_ids < 0
        if not bool(virtual.any()):
            return self.model(input_ids=input_ids, **given)
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.clamp(min=0))
        rows = self.embeddings[(-1 - input_ids).clamp(min=0)].to(embedded.dtype)
        return self.model(inputs_embeds=torch.where(virtual[..., None], rows, embedded), **given)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **given: Any) -> Tensor:
        """(B, T + new) behind prompts (B, T) that are padded on the left: the soft prompt stands before the padding,
        which nothing sees."""
        size = len(self.embeddings)
        ids = torch.arange(-1, -1 - size, -1, device=input_ids.device).expand(len(input_ids), -1)
        whole = torch.cat([ids, input_ids], 1)
        embedded: Tensor = self.model.get_input_embeddings()(whole.clamp(min=0))
        embedded[:, :size] = self.embeddings.to(embedded.dtype)
        mask = torch.cat([torch.ones_like(ids), attention_mask], 1)
        new: Tensor = cast(Any, self.model).generate(inputs_embeds=embedded, attention_mask=mask, **given)
        return torch.cat([input_ids, new], 1)

    @contextlib.contextmanager
    def disable_adapter(self) -> Generator[None]:
        """While open, the model reads no prompt: what it was before training. Called as peft's is."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def save_pretrained(self, folder: Path) -> None:
        """As PEFT would."""
        write_soft_prompt(folder, self.embeddings, self.model, self._base)

    def get_base_model(self) -> PreTrainedModel:
        return self.model

    def get_output_embeddings(self) -> nn.Module | None:
        return cast("nn.Module | None", self.model.get_output_embeddings())

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        return self.embeddings.device


def with_prefix(batch: Batch, size: int) -> Batch:
    """A batch whose documents begin with the ids −1 … −size, none of which is a target; the same targets in the same
    order."""
    inside = batch.documents >= 0
    begins = inside.clone()
    begins[:, 1:] &= batch.documents[:, 1:] != batch.documents[:, :-1]
    number = begins.cumsum(1)  # of documents that have begun in the row
    rows, length = batch.input_ids.shape
    places = torch.arange(length, device=number.device) + size * number
    shape = rows, length + size * int(number.amax())
    ids = batch.input_ids.new_zeros(shape).scatter(1, places, batch.input_ids)
    positions = batch.positions.new_zeros(shape).scatter(1, places, batch.positions + size * inside)
    documents = batch.documents.new_full(shape, -1).scatter(1, places, batch.documents)
    counted = batch.counted.new_zeros(shape).scatter(1, places, batch.counted)
    row, first = begins.nonzero(as_tuple=True)
    before = torch.arange(size, device=number.device)
    spots = places[row, first][:, None] - size + before
    ids[row[:, None], spots] = -1 - before
    positions[row[:, None], spots] = before
    documents[row[:, None], spots] = batch.documents[row, first][:, None].expand(-1, size)
    return replace(batch, input_ids=ids, positions=positions, documents=documents, counted=counted)
