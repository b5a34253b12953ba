"""A batch taken apart into documents, and documents laid into a new batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from motet.training.batch import Batch
from motet.training.policy import ClassPrompts


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """One document: ids (L,), whether position t's prediction of token t + 1 counts (L,), and its weight (L,)."""

    ids: Tensor
    counted: Tensor
    weights: Tensor

    @property
    def answer(self) -> int:
        """Where the answer begins: the first counted token."""
        return int(self.counted.to(torch.uint8).argmax()) + 1


def pieces_of(batch: Batch) -> list[ScoredDocument]:
    """The batch's documents in order."""
    weights = torch.zeros(batch.counted.shape, dtype=batch.weights.dtype, device=batch.weights.device)
    weights[batch.counted] = batch.weights
    places = [batch.documents == number for number in range(batch.num_documents)]
    return [ScoredDocument(batch.input_ids[here], batch.counted[here], weights[here]) for here in places]


def batch_of(pieces: Sequence[ScoredDocument], like: Batch) -> Batch:
    """One document per row, padded; labels and indices are those of `like`, views none."""
    ids = _padded([piece.ids for piece in pieces], 0)
    inside = _padded([torch.ones_like(piece.counted) for piece in pieces], False)
    counted = _padded([piece.counted for piece in pieces], False)
    weights = _padded([piece.weights for piece in pieces], 0.0)
    rows = torch.arange(len(pieces), device=ids.device)[:, None].expand_as(ids)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return replace(
        like,
        input_ids=ids,
        positions=positions * inside,
        documents=rows.masked_fill(~inside, -1),
        counted=counted,
        targets=ids.roll(-1, 1)[counted],
        weights=weights[counted],
        owners=rows[counted],
        num_documents=len(pieces),
        views={},
    )


def _padded(parts: Sequence[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)


def mismatched(batch: Batch) -> Batch:
    """Every document's prompt with the answer of the document before it (the last one's for the first).

    Raises:
        ValueError: there is but one document.
    """
    if batch.num_documents < 2:
        raise ValueError("mismatched answers need two documents in a batch")
    pieces = pieces_of(batch)
    crossed = [_crossed(prompt, pieces[number - 1]) for number, prompt in enumerate(pieces)]
    views = {form: mismatched(view) for form, view in batch.views.items()}
    return replace(batch_of(crossed, batch), views=views)


def _crossed(prompt: ScoredDocument, answer: ScoredDocument) -> ScoredDocument:
    p, a = prompt.answer, answer.answer
    return ScoredDocument(
        torch.cat((prompt.ids[:p], answer.ids[a:])),
        torch.cat((prompt.counted[: p - 1], answer.counted[a - 1 :])),
        torch.cat((prompt.weights[: p - 1], answer.weights[a - 1 :])),
    )


def conditioned(batch: Batch, prompts: ClassPrompts, number: int) -> Batch:
    """Every document with the prompt of class `number` set before it (behind its BOS); the targets stay as they are."""
    code = batch.input_ids.new_tensor(prompts.ids[number])
    return batch_of([_led(piece, code, prompts.at) for piece in pieces_of(batch)], batch)


def _led(piece: ScoredDocument, code: Tensor, at: int) -> ScoredDocument:
    # what position at − 1 predicted is now predicted by the last token of the code
    before = max(at - 1, 0)
    silent = len(code) + at - before - (1 if at else 0)
    return ScoredDocument(
        torch.cat((piece.ids[:at], code, piece.ids[at:])),
        torch.cat((piece.counted[:before], piece.counted.new_zeros(silent), piece.counted[before:])),
        torch.cat((piece.weights[:before], piece.weights.new_zeros(silent), piece.weights[before:])),
    )
