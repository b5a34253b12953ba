"""What a request changes at single tokens before its next one is drawn: the same for every engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Protocol

import torch
from torch import Tensor

from motet.composers.rows import Place
from motet.engines.base import Matcher, SamplingParams
from motet.kernels.layout import BitMask, SparseEdits, edits_or_none
from motet.kernels.sampling import SampleRows


class Drawing(Protocol):
    """A choice whose next token is drawn."""

    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def eos_token_ids(self) -> Sequence[int]:
        """None of them where the request ignores ends."""
        ...

    @property
    def num_generated(self) -> int: ...
    @property
    def generated(self) -> list[int]: ...
    @property
    def counts(self) -> Mapping[int, int]:
        """How often each token was generated."""
        ...

    @property
    def seen(self) -> Set[int]:
        """Tokens of the base's context and all that followed."""
        ...


def banned_tokens(choice: Drawing) -> list[int]:
    """Tokens that may not come next: ends before `min_tokens`, and last tokens of bad words."""
    sampling = choice.sampling
    banned: list[int] = []
    if choice.num_generated < sampling.min_tokens:
        banned += [*choice.eos_token_ids, *sampling.stop_token_ids]
    if sampling.bad_words:
        generated = choice.generated
        for *start, last in sampling.bad_words:
            if not start or generated[-len(start) :] == start:
                banned.append(last)
    return banned


def sample_rows(params: Sequence[SamplingParams]) -> SampleRows:
    """How each row is drawn, as the kernels read it."""
    return SampleRows(
        temperature=[s.temperature for s in params],
        top_k=[s.top_k for s in params],
        top_p=[s.top_p for s in params],
        min_p=[s.min_p for s in params],
    )


def allowed_tokens(choices: Iterable[tuple[int, Drawing]], like: Tensor) -> list[tuple[int, Tensor]]:
    """The tokens that may come next, of the (row, choice) pairs that say them."""
    allowed = ((index, choice.sampling.allowed_token_ids) for index, choice in choices)
    return [(i, torch.tensor(ids, dtype=torch.int64, device=like.device)) for i, ids in allowed if ids is not None]


def penalties(choices: Iterable[tuple[int, Drawing]], like: Tensor, vocab: int) -> tuple[SparseEdits | None, ...]:
    """(bias, repetition, presence and frequency) edits of (row, choice) pairs."""
    bias: list[Place] = []
    multiplied: list[Place] = []
    presence: list[Place] = []
    for index, choice in choices:
        s = choice.sampling
        bias += [(index, token, value) for token, value in s.logit_bias]
        if s.presence_penalty or s.frequency_penalty:
            presence += [(index, t, -s.presence_penalty - s.frequency_penalty * n) for t, n in choice.counts.items()]
        if s.repetition_penalty != 1.0:
            multiplied += [(index, token, s.repetition_penalty) for token in choice.seen if token < vocab]
    return tuple(edits_or_none(places, like) for places in (bias, multiplied, presence))


def grammar_mask(rows: Iterable[tuple[int, Matcher, Sequence[int]]], like: Tensor) -> BitMask | None:
    """The bit masks of (row, matcher, tokens generated before it) triples; None where there are none."""
    words = {index: matcher.allowed(generated) for index, matcher, generated in rows}
    if not words:
        return None
    packed = torch.stack([torch.frombuffer(bytearray(part), dtype=torch.int32) for part in words.values()])
    return BitMask(tuple(words), packed.to(like.device))
